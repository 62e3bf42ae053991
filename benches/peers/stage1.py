"""A step of stage 1 in LAVIS (salesforce-lavis 1.0.2, PyTorch) beside qformer's: same weights, same features
and captions, same machine, one run; losses of some steps are compared before anything is timed.

    pip install torch==2.1.2 torchvision==0.16.2 transformers==4.33.2 "numpy<2" "setuptools<81" safetensors \
        timm==0.4.12 iopath omegaconf fairscale==0.4.4 einops ftfy webdataset decord opencv-python-headless==4.5.5.64 \
        pandas pycocoevalcap scikit-image sentencepiece spacy plotly python-magic
    pip install --no-deps salesforce-lavis==1.0.2
    cargo build --release && python benches/peers/stage1.py

LAVIS's image encoder is replaced by the features, its tokenizer by token ids; all else is its own: Blip2Qformer's
forward, PyTorch's backward and AdamW, f32. Losses are compared without dropout and with the hardest negatives;
timed are the steps as they train, with both. Prints the times, and the memory of both processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--steps", type=int, default=2, help="of LAVIS in a round")
    parser.add_argument("--seconds", type=float, default=20.0, help="of qformer in a round")
    parser.add_argument("--bench", type=Path, default=ROOT / "target/release/qformer-bench")
    return parser.parse_args()


ARGUMENTS = arguments()
# PyTorch reads this before it starts its threads.
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import torch  # noqa: E402
from lavis.models.blip2_models import blip2_qformer  # noqa: E402
from lavis.models.blip2_models.blip2 import Blip2Base, LayerNorm  # noqa: E402
from lavis.models.blip2_models.Qformer import BertConfig, BertLMHeadModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

IMAGE_TOKENS, WIDTH, VOCABULARY = 257, 1408, 30523
DEC = VOCABULARY - 1
TEXT_LENGTH = 32
COMPARED_STEPS = 3
# The recipe that qformer-bench measures.
LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-4, (0.9, 0.98), 0.05

CONFIG = {
    "model_type": "blip-2",
    "architectures": ["Blip2ForImageTextRetrieval"],
    "num_query_tokens": 32,
    "image_text_hidden_size": 256,
    "qformer_config": {
        "model_type": "blip_2_qformer",
        "vocab_size": VOCABULARY,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "encoder_hidden_size": WIDTH,
        "cross_attention_frequency": 2,
        "use_qformer_text_input": True,
    },
    "vision_config": {
        "model_type": "blip_2_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 224,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    },
}


class Tokens(dict):
    """What a tokenizer gives."""

    __getattr__ = dict.__getitem__

    def to(self, _):
        return self


class Ids:
    """Stands for the tokenizer: a text is its ids already, and is padded as LAVIS pads it."""

    bos_token_id, pad_token_id = DEC, 0

    def __len__(self):
        return VOCABULARY

    def __call__(self, texts, max_length, **_):
        ids = torch.zeros(len(texts), max_length, dtype=torch.long)
        mask = torch.zeros(len(texts), max_length, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        return Tokens(input_ids=ids, attention_mask=mask)


class Features(torch.nn.Module):
    """Stands for the image encoder: an image is its features already."""

    num_features = WIDTH

    def forward(self, features):
        return features


def lavis_model():
    """Blip2Qformer at its real size, with weights as large as trained ones."""
    Blip2Base.init_tokenizer = classmethod(lambda _: Ids())
    Blip2Base.init_vision_encoder = classmethod(lambda *_: (Features(), LayerNorm(WIDTH)))
    BertConfig.from_pretrained = classmethod(lambda cls, _: cls())
    BertLMHeadModel.from_pretrained = classmethod(lambda cls, _, config: cls(config=config))
    torch.manual_seed(0)
    model = blip2_qformer.Blip2Qformer(max_txt_len=TEXT_LENGTH)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "temp":
                continue
            parameter.normal_(0.0, 0.04 if parameter.ndim > 1 else 0.02)
            if ("LayerNorm" in name or "ln_vision" in name) and name.endswith("weight"):
                parameter.add_(1.0)
    return model.train()


def optimizer(model):
    """LAVIS's groups: biases and norms are not decayed."""
    spared = lambda name, p: p.ndim < 2 or "bias" in name or "ln" in name or "bn" in name  # noqa: E731
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not spared(name, p)], "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in named if spared(name, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)


def batch():
    """Random features, and captions of 9 to 16 tokens."""
    count = ARGUMENTS.batch_size
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, IMAGE_TOKENS, WIDTH, generator=generator)
    lengths = [9 + 5 * text % 8 for text in range(count)]
    words = [torch.randint(1000, 30000, (length - 2,), generator=generator).tolist() for length in lengths]
    return {"image": features, "text_input": [[101, *text, 102] for text in words]}


def step(model, optimiser, samples):
    output = model(samples)
    optimiser.zero_grad()
    output.loss.backward()
    optimiser.step()
    return [x.item() for x in (output.loss, output.loss_itc, output.loss_itm, output.loss_lm)]


def losses_of_first_steps(model, samples):
    """Without dropout and with the hardest negatives; the weights are put back."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module, _ in dropouts:
        module.p = 0.0
    draw, torch.multinomial = torch.multinomial, lambda weights, _: weights.argmax(-1, keepdim=True)
    optimiser = optimizer(model)
    losses = [step(model, optimiser, samples) for _ in range(COMPARED_STEPS)]
    torch.multinomial = draw
    for module, p in dropouts:
        module.p = p
    model.load_state_dict(before)
    return losses


def qformer(folder, *options):
    command = [ARGUMENTS.bench, "train", "--device", "cpu", "--model", folder, "--batch", f"{folder}/batch.safetensors"]
    command += ["--threads", ARGUMENTS.threads, "--seconds", ARGUMENTS.seconds, "--json", *options]
    output = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)["train"]


def peak_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def write_inputs(folder, model, samples):
    shared = {"Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias"}
    tensors = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if name not in shared and not name.endswith("position_ids")
    }
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    Path(folder, "config.json").write_text(json.dumps(CONFIG))
    tokens = Ids()(samples["text_input"], TEXT_LENGTH)
    features = {"vision_output": samples["image"], **{name: ids.float() for name, ids in tokens.items()}}
    save_file(features, f"{folder}/batch.safetensors")


def main():
    torch.set_num_threads(ARGUMENTS.threads)
    with tempfile.NamedTemporaryFile() as rendezvous:
        torch.distributed.init_process_group("gloo", f"file://{rendezvous.name}", rank=0, world_size=1)
    model, samples = lavis_model(), batch()
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(folder, model, samples)
        theirs = losses_of_first_steps(model, samples)
        ours = qformer(folder)
        names = ["total", "ITC", "ITM", "ITG"]
        print(f"torch {torch.__version__}, {ARGUMENTS.threads} threads, f32, batch {ARGUMENTS.batch_size}\n")
        print(f"{'step':<6} {'loss':<6} {'LAVIS':>11} {'qformer':>11} {'difference':>11}")
        for number, (their, our) in enumerate(zip(theirs, ours["losses"])):
            for name, t, o in zip(names, their, our):
                print(f"{number:<6} {name:<6} {t:>11.6f} {o:>11.6f} {abs(t - o) / t:>11.1e}")
                # Rounding grows from step to step.
                if not abs(t - o) < (1e-4 if number == 0 else 1e-2) * t:
                    raise SystemExit(f"step {number}: {name} differs")

        optimiser = optimizer(model)
        step(model, optimiser, samples)
        their_times, our_runs = [], [ours]
        # From here on, without the copy of the weights that the comparison took.
        Path("/proc/self/clear_refs").write_text("5")
        for number in range(ARGUMENTS.rounds):
            for _ in range(ARGUMENTS.steps):
                begin = time.perf_counter()
                step(model, optimiser, samples)
                their_times.append(time.perf_counter() - begin)
            if number > 0:
                our_runs.append(qformer(folder))
        peak = peak_memory()
        frugal = qformer(folder, "--grad-checkpointing")

    count = ARGUMENTS.batch_size
    their, our = statistics.median(their_times), statistics.median(run["median_s"] for run in our_runs)
    their_least, our_least = min(their_times), min(run["min_s"] for run in our_runs)
    print(f"\n{'':<22} {'LAVIS':>10} {'qformer':>10} {'ratio':>8}")
    print(f"{'step, median s':<22} {their:>10.3f} {our:>10.3f} {their / our:>7.2f}x")
    print(f"{'step, least s':<22} {their_least:>10.3f} {our_least:>10.3f} {their_least / our_least:>7.2f}x")
    print(f"{'samples/s':<22} {count / their:>10.3f} {count / our:>10.3f} {their / our:>7.2f}x")
    ours_peak = max(run["memory_bytes"]["the process at its peak"] for run in our_runs)
    print(f"{'peak memory, GB':<22} {peak / 1e9:>10.2f} {ours_peak / 1e9:>10.2f} {peak / ours_peak:>7.2f}x")
    their, our = peak, frugal["memory_bytes"]["the process at its peak"]
    print(f"{'  grad checkpointing':<22} {their / 1e9:>10.2f} {our / 1e9:>10.2f} {their / our:>7.2f}x")
    print(f"(a step of qformer's then takes {frugal['median_s']:.3f} s)")
    weights = sum(p.numel() for p in model.parameters()) * 4
    print(f"\nof LAVIS's memory, weights, gradients and moments are {4 * weights / 1e9:.2f} GB; of qformer's:")
    for purpose, size in our_runs[-1]["memory_bytes"].items():
        print(f"  {purpose:<26} {size / 1e9:>7.2f} GB")
    print("\nqformer's parts, s: " + ", ".join(f"{name} {s:.3f}" for name, s in our_runs[-1]["parts_s"].items()))


main()
