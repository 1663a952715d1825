#!/usr/bin/env python3
"""Records what the reference does to text, for the tests of src/text.

    prompt_cleaning.json (here)          prompts and what cleaning makes of them
    ../golden/tokenizer_t5.safetensors   a small SentencePiece model, prompts, and their token ids

The reference cleans a prompt with ftfy.fix_text, html.unescape twice, and white space collapsed,
and tokenises it with the fast tokenizer that transformers makes of a T5 spiece.model.

Versions the fixtures were recorded with: Python 3.11, ftfy 6.3.1, regex 2026.11.15, sentencepiece
0.2.3, transformers 4.57.6, tokenizers 0.22.2. They must be below transformers 5, which gives
unknown characters the id 2 whatever the model says.

Usage: tests/text/record_fixtures.py                  records both files
       tests/text/record_fixtures.py --compare PROGRAM MODEL EXTRA_IDS COUNT SEED
                                                      compares a build with the reference, see below
"""

import contextlib
import html
import html.entities
import json
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import warnings

import ftfy
import ftfy.badness
import ftfy.chardata
import regex

HERE = pathlib.Path(__file__).resolve().parent

# Sentences in many languages; what ftfy cares about; what it should leave alone.
SAMPLES = [
    "A cat walks on the grass, realistic style",
    "Cinematic shot of a city at night",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u041a\u0430\u043a \u0434"
    "\u0435\u043b\u0430?",
    "\u0411\u044b\u0441\u0442\u0440\u0430\u044f \u043a\u043e\u0440\u0438\u0447\u043d\u0435"
    "\u0432\u0430\u044f \u043b\u0438\u0441\u0430",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u03b3\u03c1\u03ac\u03bc\u03bc\u03b1"
    "\u03c4\u03b1, \u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc"
    "\u03b5",
    "\xbfD\xf3nde est\xe1 la biblioteca?",
    "El ni\xf1o comi\xf3 jalape\xf1os ma\xf1ana",
    "Cr\xe8me br\xfbl\xe9e \xe0 la carte, d\xe9j\xe0 vu",
    "Gr\xf6\xdfe, Stra\xdfe, \xdcbermut, sch\xf6n",
    "P\u0159\xedli\u0161 \u017elu\u0165ou\u010dk\xfd k\u016f\u0148 \xfap\u011bl \u010f\xe1bel"
    "sk\xe9 \xf3dy",
    "Za\u017c\xf3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144",
    "\xce\u021bi mul\u021bumesc, Bucure\u0219ti",
    "\xc1rv\xedzt\u0171r\u0151 t\xfck\xf6rf\xfar\xf3g\xe9p",
    "\u0130stanbul'da g\xfcne\u015fli bir g\xfcn, \u015f\xf6yle",
    "\u0110\xe2y l\xe0 ti\u1ebfng Vi\u1ec7t r\u1ea5t \u0111\u1eb9p",
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001\uff0c\u7ec6\u8282\u6a21"
    "\u7cca\u4e0d\u6e05\uff0c\u5b57\u5e55\uff0c\u98ce\u683c\uff0c\u4f5c\u54c1\uff0c\u753b"
    "\u4f5c\uff0c\u753b\u9762\uff0c\u9759\u6b62",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u6771\u4eac\u30bf\u30ef\u30fc",
    "\uff76\uff80\uff76\uff85 \uff8a\uff9d\uff76\uff78 \uff83\uff9e\uff7d",
    "\uff26\uff35\uff2c\uff2c\u3000\uff37\uff29\uff24\uff34\uff28\uff01\uff1f\uff08\uff21"
    "\uff22\uff23\uff09\uff11\uff12\uff13",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8 \u10d4\u10dc\u10d0",
    "\u0540\u0561\u0575\u0565\u0580\u0565\u0576",
    "\u09ac\u09be\u0982\u09b2\u09be \u09ad\u09be\u09b7\u09be",
    "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "\U0001f3ac\U0001f408 a cat \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 wi"
    "th \U0001f1eb\U0001f1f7 flag \u2764\ufe0f",
    "emoji \U0001f916\U0001fae0 test \u2728",
    "\u201ccurly\u201d quotes \u2018here\u2019 and \u02bcthere",
    "\u201eGerman\u201c \xabFrench\xbb \u2039x\u203a",
    "\ufb01ne \ufb02u\ufb03ness \ufb06 \u0133 \u0149 \u01c6 \u01f1",
    "e\u0301 a\u0308 o\u0302 n\u0303 \u1100\u1161\u11a8",
    "dash \u2013 em \u2014 ellipsis \u2026 bullet \u2022",
    "price \u20ac100 \xa35 \xa530 \xa2",
    "\xbd \xbc \xd7 \xf7 \xb1 \xb2 \xb3 \xb5",
    "\xa9 \xae \u2122 \xa7 \xb6 \u2020 \u2021",
    "a\xa0b\u2003c\u3000d",
    "zero\u200bwidth\ufeff bom",
    "tab\tnew\nline\r\nret\rsep\u2028para\u2029nel\x85",
    "\x1b[31mred\x1b[0m text \x1b[1;2m",
    "ctrl\x00\x01\x07\x0b\x0c\x1a\x1f\x7f\x80\x9f",
    "&amp; &lt;b&gt; &quot;q&quot; &#39; &#x27; &nbsp;",
    "&eacute; &EACUTE; &ntilde &copy &copy; &hearts; &notit; &unknown; &amp;amp;amp;",
    "<b>&amp;</b> &lt;",
    "x < y &amp; z",
    "& alone &; &# &#; &#x; &#xZZ; &#12a;",
    "&#0; &#128; &#xD800; &#x110000; &#99999999999; &#59;",
    "\xc3 la mode",
    "voil\xc3 le travail",
    "\xc2\xa9 2020",
    "it\u2019s \u201cfine\u201d",
    "l\u2019humanit\xc3\xa9",
    "sch\xc3\xb6n",
    "\xe2\u20ac\u0153quote\xe2\u20ac\x9d",
    "s\xc3\xb3",
    "\xc3\u0192\xc2\xa9",
    "\xd0\xbf\xd1\u20ac\xd0\xb8\xd0\xb2\xd0\xb5\xd1\u201a",
    "\u0420\u0457\u0421\u0402\u0420\u0451\u0420\u0406\u0420\xb5\u0421\u201a",
    "\xe6\u2014\xa5\xe6\u0153\xac\xe8\xaa\u017e",
    "\xe3\x83\x84",
    "\\_(\u30c4)_/\xaf",
    "\u0295\u2022\u1d25\u2022\u0294",
    "( \u0361\xb0 \u035c\u0296 \u0361\xb0)",
    "\uff08\uff3e\u25bd\uff3e\uff09",
    "\u0152uvre \u0153uf c\u0153ur",
    "\xd1and\xfa \xc5 \xc5ngstr\xf6m",
    "\ufffd replacement",
    "?? lost \xe2\u20ac? ",
    "f\xc3 cil \xe0s \xc3 s \xc3 quele",
    " leading and trailing  ",
    "",
    "   ",
    "\n\n",
    "a",
]
WORDS = [word for sample in SAMPLES for word in sample.split(" ")]
ENTITIES = list(html.entities.html5)
# Encodings that UTF-8 is misread as; ftfy knows the first ten.
ENCODINGS = ftfy.chardata.CHARMAP_ENCODINGS + ["windows-1252", "koi8-r", "shift-jis", "gbk"]
MOJIBAKE = [
    chr(c)
    for classes in [*ftfy.badness.MOJIBAKE_CATEGORIES.values(), *ftfy.chardata.UTF8_CLUES.values()]
    for c in range(0xD800)
    if re.match("[" + classes + "]", chr(c))
]
# What the tokenizer treats in a special way.
SPECIALS = [
    "</s>",
    "<pad>",
    "<unk>",
    "<s>",
    "<extra_id_0>",
    "<extra_id_1>",
    "<extra_id_12>",
    "<sep>",
    "<extra_id_299>",
    "[MASK]",
    "foo bar",
    "<ctrl>",
    "<0x41>",
    "<0xE2>",
    "\u2581",
    "\u2581\u2581",
    " ",
    "  ",
    "   ",
    "a",
    "x",
    "the",
    "circle",
    "\u2603",
    "\u2603\u2603",
    "\u200b",
    "\u00a0",
    "\u00ad",
    "\n",
    "\t",
    "\x85",
    "\u3000",
    "\r\n",
    "e\u0301",
    "\u0301",
    "\ufb01",
    "\uff21",
    "\u1100\u1161",
    "\U0001f468\u200d\U0001f469",
    "\U0001f1eb\U0001f1f7",
    "\x00",
    "<",
    "</s",
    ">",
    "\u2460",
    "\u00aa",
    "\u00aa\u0300",
    "a\u030a",
]


def clean(text):
    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return regex.sub(r"\s+", " ", text).strip()


def misread(rng, text, encodings):
    """`text` as UTF-8 that was read in another encoding."""
    try:
        return text.encode().decode(
            rng.choice(encodings), rng.choice(["strict", "strict", "replace"])
        )
    except UnicodeError:
        return text


def random_character(rng):
    ranges = [
        (0, 0x7F),
        (0, 0x7F),
        (0x80, 0xFF),
        (0x100, 0x2FFF),
        (0x3000, 0xD7FF),
        (0xE000, 0xFFFF),
        (0x10000, 0x10FFFF),
    ]
    return chr(rng.randint(*rng.choice(ranges)))


def words(rng):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8)))


def sentences(rng):
    separator = rng.choice([" ", "\n", ", ", ""])
    return separator.join(rng.choice(SAMPLES) for _ in range(rng.randint(1, 4)))


def named_entities(rng):
    out = ""
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(ENTITIES)
        name = rng.choice([name, name.upper(), name.lower(), name.rstrip(";"), name[:-2]])
        out += (
            rng.choice([" ", "a", "", "&amp;", "B"]) + "&" + name + rng.choice(["", ";", " ", "x"])
        )
    return out


def numeric_entities(rng):
    out = ""
    for _ in range(rng.randint(1, 4)):
        number = rng.randint(0, rng.choice([300, 70000, 1200000]))
        out += "&#" + rng.choice(["", "x", "X"]) + str(number) + rng.choice([";", "", " ", "f;"])
    return out


def damaged(rng):
    """Mojibake whose no-break spaces became spaces and of which characters were lost."""
    out = ""
    for c in misread(rng, words(rng), ENCODINGS[:2]):
        if c == "\xa0" and rng.random() < 0.7:
            c = " "
        elif ord(c) > 0x7F and rng.random() < 0.06:
            c = rng.choice(["\ufffd", "?", " ", "\x1a", "x"])
        out += c
    return out


def cesu(rng):
    """UTF-16 surrogates encoded one by one, and misread."""
    units = sentences(rng).encode("utf-16-le")
    units = struct.unpack("<%dH" % (len(units) // 2), units)
    out = b"".join(chr(u).encode("utf-8", "surrogatepass") for u in units)
    return out.replace(b"\0", b"\xc0\x80").decode(rng.choice(ENCODINGS[:2]))


def from_ranges(rng, ranges):
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 20)))


KINDS = {
    "words": words,
    "sentences": sentences,
    "named entities": named_entities,
    "numeric entities": numeric_entities,
    "random": lambda rng: "".join(random_character(rng) for _ in range(rng.randint(1, 30))),
    "mojibake": lambda rng: misread(rng, words(rng), ENCODINGS),
    "mojibake twice": lambda rng: misread(rng, misread(rng, words(rng), ENCODINGS[:10]), ENCODINGS),
    "windows-1252": lambda rng: misread(rng, words(rng), ENCODINGS[:2]),
    "windows-1252 twice": lambda rng: misread(
        rng, misread(rng, words(rng), ENCODINGS[:2]), ENCODINGS[:2]
    ),
    "mixed": lambda rng: " ".join(
        rng.choice([words, KINDS["mojibake"], KINDS["windows-1252"], named_entities])(rng)
        for _ in range(rng.randint(2, 4))
    ),
    "mojibake alphabet": lambda rng: "".join(
        rng.choice(MOJIBAKE) if rng.random() < 0.7 else rng.choice("abcXYZ .,?!01<&\n\t_")
        for _ in range(rng.randint(1, 12))
    ),
    "damaged": damaged,
    "cesu": cesu,
    "widths": lambda rng: from_ranges(
        rng,
        [
            (0xFF00, 0xFFEF),
            (0x2000, 0x206F),
            (0x3000, 0x3000),
            (0x20, 0x7E),
            (0x130, 0x200),
            (0xFB00, 0xFB06),
        ],
    ),
    "composition": lambda rng: from_ranges(
        rng,
        [
            (0x41, 0x7A),
            (0x300, 0x36F),
            (0x1100, 0x11FF),
            (0x11A7, 0x11A7),
            (0x5B0, 0x5C7),
            (0x1E00, 0x1FFF),
            (0x900, 0xDFF),
            (0xAC00, 0xD7A3),
            (0xF900, 0xFAFF),
            (0x3040, 0x30FF),
        ],
    ),
    "special tokens": lambda rng: "".join(rng.choice(SPECIALS) for _ in range(rng.randint(1, 10))),
    "special tokens in words": lambda rng: "".join(
        rng.choice([words(rng), rng.choice(SPECIALS), " "]) for _ in range(rng.randint(1, 5))
    ),
}


def record_cleaning(path):
    rng = random.Random(1)
    prompts = list(SAMPLES)
    # Every named entity with and without semicolon, in capitals, and after a '<'.
    for begin in range(0, len(ENTITIES), 150):
        part = ENTITIES[begin : begin + 150]
        for prefix in ["", "<"]:
            prompts.append(prefix + " ".join("&" + name for name in part))
        prompts.append(" ".join("&" + name.upper() for name in part))
    # Every character that some step maps on its own.
    for first, last in [(0, 0x24F), (0x2000, 0x206F), (0xFB00, 0xFB06), (0xFF00, 0xFFFD)]:
        prompts.append("".join("%s|" % chr(c) for c in range(first, last + 1)))
    for make in list(KINDS.values())[:-2]:
        prompts += [make(rng) for _ in range(40)]
    cases = [[prompt, clean(prompt)] for prompt in prompts]
    lines = ",\n".join(json.dumps(case) for case in cases)
    reference = "ftfy %s, Python %s" % (ftfy.__version__, sys.version.split()[0])
    path.write_text(
        '{"reference": "%s", "cases": [\n%s\n]}\n' % (reference, lines), encoding="ascii"
    )


def train_model():
    """A unigram model with everything the format has: byte pieces, control and user-defined pieces,
    and a character map of its own. Works in the current folder, whose name would otherwise end up in the
    model."""
    import sentencepiece

    rules = [
        "FB01\t66 69",
        "A0\t20",
        "200B\t20",
        "AD\t",
        "2460\t31",
        "65 301\tE9",
        "61 30A\tE5",
        "FF21\t41",
        "AA\t61",
        "AA 300\tE0",
        "9\t20",
        "A\t20",
        "D A\t20",
        "3000\t20",
        "2581\t20",
        "7F\t",
        "1F468 200D 1F469\t1F46A",
        "1100 1161\tAC00",
        "2163\t49 56",
        "1\t",
    ]
    pathlib.Path("rules.tsv").write_text("\n".join(rules) + "\n")
    vocabulary = (
        "the quick brown fox jumps over a lazy dog large striped red circle moving slowly to right "
        "on navy background cinematic shot of city at night with neon lights camera pans across "
        "mountain lake 4K HDR \u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u4e16\u754c "
        "\u4f60\u597d \u6771\u4eac \ud55c\uad6d\uc5b4 caf\u00e9 d\u00e9j\u00e0 \u5149"
    ).split()
    rng = random.Random(2)
    text = "".join(
        " ".join(rng.choice(vocabulary) for _ in range(rng.randint(3, 12)))
        + rng.choice(".,!\"' ")
        + "\n"
        for _ in range(4000)
    )
    pathlib.Path("text").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input="text",
        model_prefix="spiece",
        vocab_size=520,
        model_type="unigram",
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        hard_vocab_limit=False,
        user_defined_symbols=["<sep>", "[MASK]", "foo bar"],
        control_symbols=["<ctrl>"],
        normalization_rule_tsv="rules.tsv",
        num_threads=1,
        minloglevel=2,
    )
    return pathlib.Path("spiece.model").read_bytes()


def fast_tokenizer(model_path, extra_ids):
    from transformers import T5TokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    return T5TokenizerFast(str(model_path), extra_ids=extra_ids, add_prefix_space=True)


def record_tokenizer(path):
    import numpy
    from safetensors.numpy import save_file

    extra_ids = 100
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        model = train_model()
        tokenizer = fast_tokenizer("spiece.model", extra_ids)
    rng = random.Random(3)
    cases = []
    for prompt in [
        "",
        " ",
        "a",
        "the quick brown fox",
        "  two  spaces  ",
        "caf\u00e9",
        "</s>",
        "the</s> quick<pad>",
        "<extra_id_0> fox <extra_id_99> <extra_id_100>",
        "<0x41>",
    ]:
        cases += [(prompt, limit, False) for limit in [1, 2, 5, 16]]
    for make in KINDS.values():
        for _ in range(8):
            cases.append((make(rng), rng.choice([4, 12, 48]), rng.random() < 0.4))
    tensors = {"w.spiece_model": numpy.frombuffer(model, dtype=numpy.uint8)}
    for i, (prompt, limit, cleaned) in enumerate(cases):
        text = clean(prompt) if cleaned else prompt
        result = tokenizer(text, truncation=True, max_length=limit, padding="max_length")
        tensors["out.ids.%d" % i] = numpy.array(result.input_ids, dtype=numpy.int64)
        tensors["out.mask.%d" % i] = numpy.array(result.attention_mask, dtype=numpy.int64)
    config = {
        "extra_ids": extra_ids,
        "cases": [{"prompt": p, "max_tokens": n, "clean": c} for p, n, c in cases],
    }
    save_file(
        tensors,
        path,
        metadata={
            "module": "tokenizer",
            "reference": "transformers 4.57.6 T5TokenizerFast, tokenizers 0.22.2, ftfy 6.3.1",
            "config": json.dumps(config),
        },
    )


def compare(program, model, extra_ids, count, seed):
    """Runs `count` prompts of each kind through PROGRAM (compare_main.cc) and the reference.

    PROGRAM reads prompts (32-bit length, bytes) and answers each with its cleaned text, in the same
    form, and the token ids of the prompt as it is, as text."""
    rng = random.Random(seed)
    tokenizer = fast_tokenizer(model, extra_ids)
    items = [(kind, make(rng)) for kind, make in KINDS.items() for _ in range(count)]
    if seed == 1:
        ranges = [(0, 0xD7FF), (0xE000, 0x1FFFF)]
        points = [chr(c) for first, last in ranges for c in range(first, last + 1)]
        for form in ["%s", "a%sb", "\u00e9%s", "%s\u0301", "&#x%X;"]:
            items += [("each character", form % (ord(c) if "X" in form else c)) for c in points]
        for form in ["x&%sy", "&%s", "<&%s"]:
            items += [("each entity", form % name) for name in ENTITIES]
            items += [("each entity", form % name.upper()) for name in ENTITIES]
    items = [(kind, text) for kind, text in items if not re.search("[\ud800-\udfff]", text)]
    data = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for _, t in items)
    out = subprocess.run(
        [program, model, str(extra_ids)], input=data, capture_output=True, check=True
    ).stdout
    answers = []
    position = 0
    while position < len(out):
        (size,) = struct.unpack_from("<I", out, position)
        answers.append(out[position + 4 : position + 4 + size].decode())
        position += 4 + size
    ids = tokenizer([text for _, text in items]).input_ids
    totals = {}
    for i, (kind, text) in enumerate(items):
        total = totals.setdefault(kind, [0, 0, 0, 0])
        total[0] += 1
        expected = clean(text)
        total[1] += expected != text
        for j, want in enumerate([expected, " ".join(str(x) for x in ids[i])]):
            if answers[2 * i + j] != want:
                total[2 + j] += 1
                if total[2 + j] < 4:
                    print(
                        ascii(text),
                        "\n  reference:",
                        ascii(want),
                        "\n  here:",
                        ascii(answers[2 * i + j]),
                    )
    print("%-26s %8s %8s %8s %8s" % ("kind", "prompts", "changed", "cleaned", "ids"))
    totals["total"] = [sum(column) for column in zip(*totals.values())]
    for kind, row in totals.items():
        print("%-26s %8d %8d %8d %8d" % (kind, *row))
    print("(the last two columns count disagreements)")


def main():
    if len(sys.argv) == 7 and sys.argv[1] == "--compare":
        compare(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
        return
    record_cleaning(HERE / "prompt_cleaning.json")
    record_tokenizer(HERE.parent / "golden" / "tokenizer_t5.safetensors")


if __name__ == "__main__":
    main()
