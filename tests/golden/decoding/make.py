"""Writes expected.json: what transformers' `generate` makes of a toy language model.

Run with torch and transformers 5.24. The model's logits are the sum of rows of four tables: for the
last token, for the one before it (nothing where there is none), for the prompt, and for the number of tokens.
"""

import json
import pathlib

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import TopPLogitsWarper
from transformers.modeling_outputs import CausalLMOutput

VOCABULARY, START, END, PROMPTS, LONGEST = 12, 1, 2, 3, 30


class ToyConfig(PretrainedConfig):
    model_type = "toy"
    num_hidden_layers = 0
    vocab_size = VOCABULARY


class Toy(PreTrainedModel, GenerationMixin):
    """A prompt is the number of the table that is added whatever the tokens are."""

    config_class = ToyConfig

    def __init__(self, config, last, before, prompt, place):
        super().__init__(config)
        tables = (last, before, prompt, place)
        self.last, self.before, self.prompt, self.place = (torch.nn.Parameter(t) for t in tables)

    def forward(self, input_ids, prompts=None, **unused):
        logits = self.last[input_ids]
        logits[:, 1:] = logits[:, 1:] + self.before[input_ids[:, :-1]]
        logits = logits + self.place[: input_ids.shape[1]]
        return CausalLMOutput(logits=logits + self.prompt[prompts][:, None])

    def prepare_inputs_for_generation(self, input_ids, prompts=None, **unused):
        return {"input_ids": input_ids, "prompts": prompts}


def tables(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows: (torch.randn(rows, VOCABULARY, generator=generator) * scale * 4096).round() / 4096
    return draw(VOCABULARY), draw(VOCABULARY), draw(PROMPTS), draw(LONGEST)


def case(beams, length, least, power, penalty, early=False, ngram=0, ends=(END,)):
    return dict(
        num_beams=beams,
        max_length=length,
        min_length=least,
        length_penalty=power,
        repetition_penalty=penalty,
        early_stopping=early,
        no_repeat_ngram_size=ngram,
        eos_token_id=list(ends),
    )


CASES = [
    case(1, 12, 0, 1.0, 1.0),
    case(1, 12, 8, 1.0, 1.5),
    case(1, 9, 0, 1.0, 0.7),
    case(2, 12, 0, 1.0, 1.0),
    case(3, 30, 10, 1.0, 1.0),
    case(3, 30, 10, 1.0, 1.5),
    case(3, 12, 0, 0.0, 1.0),
    case(3, 12, 0, 2.0, 1.2),
    case(3, 12, 0, -1.0, 1.0),
    case(4, 3, 0, 1.0, 1.0),
    case(5, 20, 5, 1.5, 0.8),
    case(4, 2, 0, 1.0, 1.0),
    case(3, 20, 0, 1.0, 1.0, early=True),
    case(3, 20, 0, 2.0, 1.0, early="never"),
    case(3, 20, 0, -1.0, 1.0, early="never"),
    case(4, 20, 6, 0.5, 1.1, early=True),
    case(1, 24, 0, 1.0, 1.0, ngram=2),
    case(3, 24, 12, 1.0, 1.2, ngram=3),
    case(2, 24, 4, 1.0, 1.0, ends=(END, 5, 7)),
    case(1, 24, 4, 1.0, 1.0, ends=(5, END)),
]


def main():
    expected = {"vocabulary": VOCABULARY, "start": START, "end": END, "models": []}
    for seed, scale in [(1, 1.0), (2, 2.0), (3, 0.5)]:
        last, before, prompt, place = tables(seed, scale)
        model = Toy(ToyConfig(), last, before, prompt, place).eval()
        cases = []
        for case in CASES:
            sequences = case["num_beams"]
            config = GenerationConfig(
                **case,
                num_return_sequences=sequences,
                do_sample=False,
                bos_token_id=START,
                pad_token_id=END,
                use_cache=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
            ids = torch.full((PROMPTS, 1), START)
            output = model.generate(ids, prompts=torch.arange(PROMPTS), generation_config=config)
            found = []
            for row in output.sequences[:, 1:].tolist():
                ends = [place for place, token in enumerate(row) if token in case["eos_token_id"]]
                found.append(row[: ends[0] + 1] if ends else row)
            scores = output.sequences_scores.tolist() if sequences > 1 else None
            split = lambda rows: [rows[i : i + sequences] for i in range(0, len(rows), sequences)]
            cases.append({**case, "sequences": split(found), "scores": scores and split(scores)})
        nuclei = []
        for top_p in [0.1, 0.5, 0.9, 1.0]:
            kept = TopPLogitsWarper(top_p)(None, last).softmax(-1)
            nuclei.append({"top_p": top_p, "probabilities": kept.tolist()})
        names = ["last", "before", "prompt", "place"]
        as_lists = {name: table.tolist() for name, table in zip(names, [last, before, prompt, place])}
        expected["models"].append({**as_lists, "cases": cases, "nuclei": nuclei})
    path = pathlib.Path(__file__).with_name("expected.json")
    path.write_text(json.dumps(expected, separators=(",", ":")) + "\n")


main()
