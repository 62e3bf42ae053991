"""Writes expected.json: what transformers' `generate` makes of a toy language model.

Run with torch and transformers 5.23. The model's logits follow from the last two tokens alone: the
sum of a row of one table and a row of another, with nothing in place of a token before the first.
"""

import json
import pathlib

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import TopPLogitsWarper
from transformers.modeling_outputs import CausalLMOutput

VOCABULARY, START, END, PROMPTS = 12, 1, 2, 3


class ToyConfig(PretrainedConfig):
    model_type = "toy"
    num_hidden_layers = 0
    vocab_size = VOCABULARY


class Toy(PreTrainedModel, GenerationMixin):
    """A prompt is the number of the table that is added whatever the tokens are."""

    config_class = ToyConfig

    def __init__(self, config, last, before, prompt):
        super().__init__(config)
        self.last, self.before, self.prompt = (torch.nn.Parameter(t) for t in (last, before, prompt))

    def forward(self, input_ids, prompts=None, **unused):
        logits = self.last[input_ids]
        logits[:, 1:] = logits[:, 1:] + self.before[input_ids[:, :-1]]
        return CausalLMOutput(logits=logits + self.prompt[prompts][:, None])

    def prepare_inputs_for_generation(self, input_ids, prompts=None, **unused):
        return {"input_ids": input_ids, "prompts": prompts}


def tables(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda rows: (torch.randn(rows, VOCABULARY, generator=generator) * scale * 64).round() / 64
    return draw(VOCABULARY), draw(VOCABULARY), draw(PROMPTS)


CASES = [
    dict(num_beams=beams, max_length=length, min_length=least, length_penalty=power, repetition_penalty=penalty)
    for beams, length, least, power, penalty in [
        (1, 12, 0, 1.0, 1.0),
        (1, 12, 8, 1.0, 1.5),
        (1, 9, 0, 1.0, 0.7),
        (2, 12, 0, 1.0, 1.0),
        (3, 30, 10, 1.0, 1.0),
        (3, 30, 10, 1.0, 1.5),
        (3, 12, 0, 0.0, 1.0),
        (3, 12, 0, 2.0, 1.2),
        (3, 12, 0, -1.0, 1.0),
        (4, 3, 0, 1.0, 1.0),
        (5, 20, 5, 1.5, 0.8),
        (4, 2, 0, 1.0, 1.0),
    ]
]


def main():
    expected = {"vocabulary": VOCABULARY, "start": START, "end": END, "models": []}
    for seed, scale in [(1, 1.0), (2, 2.0), (3, 0.5)]:
        last, before, prompt = tables(seed, scale)
        model = Toy(ToyConfig(), last, before, prompt).eval()
        cases = []
        for case in CASES:
            sequences = case["num_beams"]
            config = GenerationConfig(
                **case,
                num_return_sequences=sequences,
                do_sample=False,
                early_stopping=False,
                bos_token_id=START,
                eos_token_id=END,
                pad_token_id=END,
                use_cache=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
            ids = torch.full((PROMPTS, 1), START)
            output = model.generate(ids, prompts=torch.arange(PROMPTS), generation_config=config)
            found = []
            for row in output.sequences[:, 1:].tolist():
                ends = row.index(END) + 1 if END in row else len(row)
                found.append(row[:ends])
            scores = output.sequences_scores.tolist() if sequences > 1 else None
            split = lambda rows: [rows[i : i + sequences] for i in range(0, len(rows), sequences)]
            cases.append({**case, "sequences": split(found), "scores": scores and split(scores)})
        nuclei = []
        for top_p in [0.1, 0.5, 0.9, 1.0]:
            kept = TopPLogitsWarper(top_p)(None, last).softmax(-1)
            nuclei.append({"top_p": top_p, "probabilities": kept.tolist()})
        as_lists = {"last": last.tolist(), "before": before.tolist(), "prompt": prompt.tolist()}
        expected["models"].append({**as_lists, "cases": cases, "nuclei": nuclei})
    path = pathlib.Path(__file__).with_name("expected.json")
    path.write_text(json.dumps(expected, separators=(",", ":")) + "\n")


main()
