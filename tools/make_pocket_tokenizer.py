#!/usr/bin/env python3
"""Makes models/pocket/spiece.model, the tokenizer of the pocket models.

A SentencePiece unigram model of at most 1000 pieces, with the ids of UMT5 (<pad> 0, </s> 1, <s> 2,
<unk> 3) and no normalisation, trained on captions of the pocket world. Every printable ASCII
character is a piece, so that any ASCII prompt is free of <unk>.

The captions span, with synonyms, free clause order, and any attribute left out:

    caption     = [opening] [background ","] objects [background] ["."]
    opening     = "a video of" | "an animation of" | "there is" | "we see" | ...
    objects     = object | object joint object            (the second is drawn in front)
    joint       = "and" | "while" | "with" | "in front of" | "behind" | ...
    object      = [article] {size | texture | colour} shape ["with" pattern] [motion]
    size        = small | large
    texture     = plain | striped | dotted | checkered
    colour      = red | orange | yellow | green | cyan | blue | purple | pink | white
    shape       = circle | square | triangle | star | ring | cross
    motion      = still | direction | circling | bouncing, [speed], ["spinning"]
    direction   = left | right | up | down
    speed       = slowly | fast
    background  = "on" | "against" ... [article] [gradient] [starry] ground place
    ground      = black | grey | navy | brown | dark green
    place       = "background" | "sky" | "scene" | ...

in lower case, with a capital at the start, or all in capitals.

The result does not depend on the machine: the captions come from a fixed seed, and one thread of
spm_train (Debian package sentencepiece 0.1.97) reads them in order.

Usage: tools/make_pocket_tokenizer.py [OUTPUT]        (default: models/pocket/spiece.model)
       tools/make_pocket_tokenizer.py --captions 20   prints captions instead
"""

import argparse
import pathlib
import random
import shutil
import string
import subprocess
import tempfile

SHAPES = {
    "circle": ["circle", "circle", "disc", "disk", "ball"],
    "square": ["square", "square", "box", "block"],
    "triangle": ["triangle"],
    "star": ["star"],
    "ring": ["ring", "ring", "hoop"],
    "cross": ["cross", "cross", "plus sign"],
}
COLOURS = {
    "red": ["red", "red", "red", "scarlet", "crimson"],
    "orange": ["orange"],
    "yellow": ["yellow", "yellow", "golden"],
    "green": ["green", "green", "emerald"],
    "cyan": ["cyan", "cyan", "turquoise", "teal"],
    "blue": ["blue", "blue", "azure"],
    "purple": ["purple", "purple", "violet"],
    "pink": ["pink", "pink", "magenta"],
    "white": ["white"],
}
TEXTURES = {
    "plain": ["plain", "plain", "solid", "uniform", "flat"],
    "striped": ["striped", "striped", "stripy", "lined"],
    "dotted": ["dotted", "dotted", "spotted", "polka-dot"],
    "checkered": ["checkered", "checkered", "chequered", "checked", "checkerboard"],
}
PATTERNS = {
    "plain": ["no pattern", "no texture"],
    "striped": ["stripes", "lines", "a striped pattern"],
    "dotted": ["dots", "spots", "a dotted pattern"],
    "checkered": ["checks", "squares on it", "a checkered pattern"],
}
SIZES = {"small": ["small", "small", "little", "tiny"], "large": ["large", "large", "big", "huge"]}
SPEEDS = {
    "slow": ["slowly", "slowly", "gently", "at a slow pace", "slow"],
    "fast": ["fast", "quickly", "rapidly", "at high speed", "swiftly"],
}
# (with "is" or "-ing", with the plain third person)
MOVES = [
    ("moving", "moves"),
    ("moving", "moves"),
    ("drifting", "drifts"),
    ("sliding", "slides"),
    ("gliding", "glides"),
    ("travelling", "travels"),
    ("traveling", "travels"),
    ("floating", "floats"),
    ("going", "goes"),
]
DIRECTIONS = {
    "left": ["to the left", "left", "leftwards", "leftward", "from right to left"],
    "right": ["to the right", "right", "rightwards", "rightward", "from left to right"],
    "up": ["up", "upwards", "upward", "to the top", "from bottom to top"],
    "down": ["down", "downwards", "downward", "to the bottom", "from top to bottom"],
}
STILL = [
    ("staying still", "stays still"),
    ("standing still", "stands still"),
    ("not moving", "does not move"),
    ("resting", "rests"),
    ("motionless", "is motionless"),
    ("stationary", "is stationary"),
    ("still", "is still"),
    ("at rest", "sits at rest"),
]
CIRCLING = [
    ("circling", "circles"),
    ("moving in a circle", "moves in a circle"),
    ("going around in circles", "goes around in circles"),
    ("orbiting", "orbits"),
    ("circling around", "circles around"),
    ("moving in circles", "moves in circles"),
]
BOUNCING = [
    ("bouncing", "bounces"),
    ("bouncing around", "bounces around"),
    ("bouncing off the edges", "bounces off the edges"),
    ("bouncing off the walls", "bounces off the walls"),
    ("bouncing up and down", "bounces up and down"),
]
SPINNING = [
    ("spinning", "spins"),
    ("rotating", "rotates"),
    ("turning", "turns"),
    ("spinning around", "spins around"),
]
GROUNDS = ["black", "grey", "gray", "navy", "navy blue", "brown", "dark green", "dark grey"]
GRADIENTS = ["gradient", "vertical gradient", "shaded", "fading", "smooth gradient"]
STARRY = ["starry", "starry", "star-filled", "starlit", "with stars"]
PLACES = ["background", "background", "background", "backdrop", "sky", "scene", "night sky"]
OPENINGS = [
    "a video of",
    "an animation of",
    "a clip of",
    "a scene with",
    "a scene of",
    "there is",
    "we see",
    "the video shows",
    "this is",
    "look at",
    "animated video:",
    "footage of",
]
JOINTS = [
    "and",
    "while",
    "with",
    "in front of",
    "behind",
    "next to",
    "together with",
    "as",
    "plus",
    ", then",
    ";",
    "followed by",
    "near",
]
PREPOSITIONS = ["on", "on", "against", "over", "in front of", "across", "under", "in"]


def maybe(rng, chance):
    return rng.random() < chance


def article(rng, word, bare):
    if bare:
        return word
    if maybe(rng, 0.1):
        return rng.choice(["the ", "one ", "another "]) + word
    return ("an " if word[0] in "aeiou" else "a ") + word


def motion(rng):
    """(participle, third person) of a random motion, or None."""
    kind = rng.choice(["still", "move", "move", "move", "circling", "bouncing", None])
    if kind is None:
        return None
    if kind == "still":
        verb, tail = rng.choice(STILL), ""
    elif kind == "move":
        verb = rng.choice(MOVES)
        tail = " " + rng.choice(DIRECTIONS[rng.choice(list(DIRECTIONS))])
        speed = rng.choice(SPEEDS[rng.choice(list(SPEEDS))])
        if maybe(rng, 0.5):
            tail = rng.choice([tail + " " + speed, " " + speed + tail])
    else:
        verb = rng.choice(CIRCLING if kind == "circling" else BOUNCING)
        tail = ""
        if maybe(rng, 0.4):
            tail = " " + rng.choice(SPEEDS[rng.choice(list(SPEEDS))])
    spin = rng.choice(SPINNING)
    result = (verb[0] + tail, verb[1] + tail)
    if maybe(rng, 0.25):
        result = (
            result[0] + rng.choice([" and ", " while ", ", "]) + spin[0],
            result[1] + rng.choice([" and " + spin[1], " while " + spin[0]]),
        )
    return result


def thing(rng, bare):
    colour, shape = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
    texture, size = rng.choice(list(TEXTURES)), rng.choice(list(SIZES))
    words = []
    if maybe(rng, 0.5):
        words.append(rng.choice(SIZES[size]))
    pattern = ""
    if maybe(rng, 0.5):
        if maybe(rng, 0.25):
            pattern = " with " + rng.choice(PATTERNS[texture])
        else:
            words.append(rng.choice(TEXTURES[texture]))
    if maybe(rng, 0.85):
        words.append(rng.choice(COLOURS[colour]))
    if maybe(rng, 0.2):
        rng.shuffle(words)
    words.append(rng.choice(SHAPES[shape]) if maybe(rng, 0.9) else rng.choice(["shape", "object"]))
    text = article(rng, (", " if maybe(rng, 0.1) else " ").join(words), bare) + pattern
    move = motion(rng)
    if move is not None:
        text += " " + rng.choice([move[0], move[1], "is " + move[0], "that " + move[1]])
    return text


def background(rng, bare):
    words = []
    after = ""
    if maybe(rng, 0.2):
        words.append("plain")
    if maybe(rng, 0.25):
        words.append(rng.choice(GRADIENTS))
    if maybe(rng, 0.3):
        starry = rng.choice(STARRY)
        if starry.startswith("with "):
            after = " " + starry
        else:
            words.append(starry)
    words += [rng.choice(GROUNDS), rng.choice(PLACES)]
    return rng.choice(PREPOSITIONS) + " " + article(rng, " ".join(words), bare) + after


def caption(rng):
    bare = maybe(rng, 0.2)
    text = thing(rng, bare)
    if maybe(rng, 0.4):
        text += " " + rng.choice(JOINTS) + " " + thing(rng, bare)
    where = background(rng, bare)
    place = rng.random()
    if place < 0.45:
        text = text + " " + where
    elif place < 0.75:
        text = where + ", " + text
    if maybe(rng, 0.2):
        text = rng.choice(OPENINGS) + " " + text
    text = text.replace(" ,", ",").replace(" ;", ";")
    if maybe(rng, 0.4):
        text += rng.choice([".", ".", ".", "!", ", 4 seconds", ", slow motion", "..."])
    case = rng.random()
    if case < 0.3:
        text = text[0].upper() + text[1:]
    elif case < 0.4:
        text = text.upper()
    return text


def captions(count):
    rng = random.Random(20240811)
    return [caption(rng) for _ in range(count)]


def train(output):
    printable = "".join(sorted(set(string.printable) - set(string.whitespace)))
    with tempfile.TemporaryDirectory() as folder:
        # Names inside the model file: relative, so that they say nothing of this machine.
        lines = captions(30000)
        # The trainer proposes a piece only if it occurs in two different words. Every word before
        # two kinds of punctuation makes all words candidates.
        for word in sorted(set(" ".join(lines).split(" "))):
            if word[-1].isalpha():
                lines.append("%s, %s; %s. %s!" % (word, word, word, word))
        pathlib.Path(folder, "captions.txt").write_text("\n".join(lines) + "\n", encoding="ascii")
        subprocess.run(
            [
                "spm_train",
                "--input=captions.txt",
                "--model_prefix=spiece",
                "--model_type=unigram",
                "--vocab_size=1000",
                "--hard_vocab_limit=false",
                "--character_coverage=1.0",
                "--required_chars=" + printable,
                "--normalization_rule_name=identity",
                "--pad_id=0",
                "--eos_id=1",
                "--bos_id=2",
                "--unk_id=3",
                "--num_threads=1",
                "--max_sentencepiece_length=16",
                "--minloglevel=1",
            ],
            cwd=folder,
            check=True,
        )
        shutil.copyfile(pathlib.Path(folder, "spiece.model"), output)


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Makes the tokenizer of the pocket models.")
    parser.add_argument("output", nargs="?", default=root / "models" / "pocket" / "spiece.model")
    parser.add_argument("--captions", type=int, help="print so many captions and stop")
    arguments = parser.parse_args()
    if arguments.captions:
        print("\n".join(captions(arguments.captions)))
    else:
        train(arguments.output)


if __name__ == "__main__":
    main()
