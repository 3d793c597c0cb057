"""Sixty everyday questions by voice; prints a table of question, what was heard, and the answer, to be judged by a
person.

python -m benchmarks.everyday --text-model qwen2.5-coder-1.5b-instruct > answers.md
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.asked import groups, spoken
from vivavoce.talking import assemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-model")
    parser.add_argument("--asr")
    given = parser.parse_args()
    cascade = assemble(text_model=given.text_model, recogniser=given.asr)
    cascade.warm()
    print(
        f"models: {', '.join(cascade.models.values())}\n\n"
        "| group | asked | heard | answered | verdict |\n|---|---|---|---|---|"
    )
    for group, dialogues in groups().items():
        for questions in dialogues:
            session = cascade.session()
            for question in questions:
                session.ask(torch.from_numpy(spoken(question)))
                turn = session.turns[-1]
                while session.answering:
                    session.poll()
                    time.sleep(0.01)
                print(f"| {group} | {question} | {turn.heard.strip()} | {turn.answer.strip()} | |", flush=True)
            session.close()


if __name__ == "__main__":
    main()
