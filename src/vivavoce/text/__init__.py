"""Text: scoring normalisers, what a voice reads aloud, cutting into sentences and clauses, phonemes, tokenizers."""
