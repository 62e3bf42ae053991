"""How fast OPT-2.7B speaks: qformer beside transformers, with random weights of the real size, in turns on one machine.

    pip install torch transformers
    cargo build --release && python benches/peers/generate.py

Prints seconds for a prompt of 40 tokens and for a token of 1, 5 and 10 sequences, in bf16 (and, with --f32, in f32, which
takes 11 GB) by transformers and with f16 weights by `qformer-bench generate`, and how many times as long transformers takes.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import torch
from transformers import OPTConfig, OPTForCausalLM

ROOT = Path(__file__).resolve().parents[2]
PROMPT, SEQUENCES = 40, [1, 5, 10]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--f32", action="store_true")
    parser.add_argument("--bench", type=Path, default=ROOT / "target/release/qformer-bench")
    return parser.parse_args()


def least(work, seconds):
    """The least time of some runs."""
    work()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def model(dtype):
    config = OPTConfig(
        vocab_size=50304, hidden_size=2560, num_hidden_layers=32, num_attention_heads=32, ffn_dim=10240,
        word_embed_proj_dim=2560, max_position_embeddings=2048,
    )
    torch.set_default_dtype(dtype)
    with torch.device("meta"):
        empty = OPTForCausalLM(config)
    empty = empty.to_empty(device="cpu").eval()
    empty.tie_weights()
    with torch.no_grad():
        for name, parameter in empty.named_parameters():
            parameter.uniform_(-0.06, 0.06)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return empty


@torch.inference_mode()
def transformers(dtype, seconds):
    opt = model(dtype)
    ids = torch.arange(PROMPT)[None] + 100
    found = {"prompt": least(lambda: opt(ids, use_cache=True, logits_to_keep=1), seconds)}
    for count in SEQUENCES:
        past = opt(ids.repeat(count, 1), use_cache=True, logits_to_keep=1).past_key_values
        token = torch.full((count, 1), 100)

        def step():
            # The cache grows by a token at a time, as in a generation.
            opt(token, past_key_values=past, use_cache=True)

        found[count] = least(step, seconds)
    return found


def main():
    given = arguments()
    torch.set_num_threads(given.threads)
    command = [given.bench, "generate", "--device", "cpu", "--threads", given.threads, "--seconds", given.seconds, "--json"]
    report = json.loads(subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE).stdout)
    own = report["generate"][0]
    seconds = {"prompt": own["prompt_min_s"], **{token["sequences"]: token["min_s"] for token in own["tokens"]}}
    for dtype in [torch.bfloat16, *([torch.float32] if given.f32 else [])]:
        peer = transformers(dtype, given.seconds)
        for what, ours in seconds.items():
            name = what if what == "prompt" else f"token of {what}"
            theirs = peer[what]
            print(f"{name:<12} qformer {ours * 1e3:7.1f} ms, transformers {dtype} {theirs * 1e3:7.1f} ms: {theirs / ours:.2f}x")


main()
