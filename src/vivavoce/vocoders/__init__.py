"""Vocoders: features (B, M, T) to waves (B, S). One file a system; streaming where it is exact."""
