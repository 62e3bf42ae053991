"""Writes what transformers makes of odd texts with a small Unigram tokenizer, as T5's, and with OPT's kind of BPE.

Run with transformers 5.24 and sentencepiece: `python make.py`. The Unigram tokenizer is trained here, on the captions of
the goldens, with SentencePiece's own normal forms, and converted by transformers; the BPE one is `../dialogue-opt`'s.
"""

import json
import pathlib
import random

import sentencepiece
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import T5Converter

HERE = pathlib.Path(__file__).parent
WORDS = (
    "a red cat sits on the table two dogs run in snow near house cup of coffee smiling astronaut orange suit rocket launch pad "
    "at night question answer short which colour is it what picture photo Paris été naïve ½ № ﬁne Ａｂｃ 漢字 かな привет 😀 don't 3.14"
).split()
ODD = [
    "", " ", "  two  spaces ", "tab\there", "line\nbreak", "a photo of", "Question: what is it? Short answer:", "naïve café",
    "ﬁne ½ № Ａｂｃ", "漢字かな", "emoji 😀😀 👩‍👩‍👧", "​zero​width", " nbsp ", "é e\u0301", "don't can't it's",
    "3.14 1,000 50%", "ALL CAPS and CamelCase", "...!?", "\u0000control\u0007", "x" * 200, "الكتاب", "\ufeffbom", "a\u00adb", "ǅ ǆ", "𝒜𝓑",
]


def texts():
    draw = random.Random(1)
    for _ in range(400):
        words = [draw.choice(WORDS) for _ in range(draw.randrange(1, 9))]
        yield draw.choice(["", " "]) + draw.choice([" ", "  ", ", ", "-", ""]).join(words) + draw.choice(["", ".", "?", " ", "\n"])
    for _ in range(200):
        yield "".join(chr(draw.choice([draw.randrange(32, 127), draw.randrange(160, 0x3000), draw.randrange(0x1F300, 0x1F600)])) for _ in range(12))


def main():
    draw = random.Random(2)
    lines = [" ".join(draw.choice(WORDS) for _ in range(8)) for _ in range(2000)]
    corpus = HERE / "corpus.txt"
    corpus.write_text("\n".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(HERE / "small"), vocab_size=90, model_type="unigram", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, character_coverage=0.98, num_threads=1,
    )

    class Slow:
        vocab_file = str(HERE / "small.model")
        _extra_ids = 4

        @staticmethod
        def convert_tokens_to_ids(token):
            return {"</s>": 1}[token]

    unigram = T5Converter(Slow()).converted()
    unigram.save(str(HERE / "tokenizer.json"))
    for name in ["corpus.txt", "small.model", "small.vocab"]:
        (HERE / name).unlink()
    bpe = Tokenizer.from_file(str(HERE / "../dialogue-opt/model/tokenizer.json"))
    cases = []
    for text in [*ODD, *texts()]:
        case = {"text": text}
        for name, tokenizer in [("unigram", unigram), ("bpe", bpe)]:
            ids = tokenizer.encode(text).ids
            case[name] = {"ids": ids, "decoded": tokenizer.decode(ids)}
        cases.append(case)
    path = HERE / "expected.json"
    path.write_text(json.dumps(cases, ensure_ascii=True, separators=(",", ":")) + "\n")


main()
