"""Write reviews.csv: short reviews made from parts, so that the examples have something to read.

Whether a review is positive takes two words that may stand far apart: the judgement and a "not".
"""

import csv
import random
from pathlib import Path

GOOD = ["good", "excellent", "charming", "brilliant", "delightful", "superb"]
BAD = ["bad", "dull", "awful", "tedious", "clumsy", "dreadful"]
THINGS = ["film", "book", "play", "meal", "hotel", "concert", "lecture", "museum"]
PLACES = ["in the old town", "by the river", "near the station", "on the second day", "at noon"]
FRIENDS = ["my sister", "a colleague", "our neighbour", "an old friend", "the whole family"]


def review(generator: random.Random) -> dict[str, str]:
    """One row: text and label."""
    positive, negated = generator.random() < 0.5, generator.random() < 0.4
    word = generator.choice(GOOD if positive != negated else BAD)
    opinion = f"was {'not ' if negated else ''}{word}"
    thing, place, friend = (generator.choice(words) for words in (THINGS, PLACES, FRIENDS))
    text = generator.choice(
        [
            f"The {thing} that {friend} chose {place} {opinion}.",
            f"I went with {friend}, and {place} the {thing} {opinion}.",
            f"{friend.capitalize()} had told me of the {thing} {place}: it {opinion}.",
        ]
    )
    return {"text": text, "label": "positive" if positive else "negative"}


if __name__ == "__main__":
    path = Path(__file__).with_name("reviews.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], lineterminator="\n")
        writer.writeheader()
        draws = random.Random(0)
        writer.writerows(review(draws) for _ in range(400))
