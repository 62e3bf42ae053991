"""BLIP-2 at its real size (1.17 billion random parameters) on photographs: qformer beside transformers.

    pip install torch transformers pillow
    cargo build --release && python benches/peers/real_size.py

Writes a checkpoint (by transformers in f16, or by `qformer init`), embeds and scores photographs with
qformer, and prints its peak memory against the size of the f32 weights and its differences from what
transformers computes in f32 from the same files. Needs 6 GB of disk and 12 GB of memory.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/retrieval"
TEXTS = ["a red cat sits on a table", "a cup of coffee", "a smiling astronaut in an orange suit"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--written-by", choices=["transformers", "qformer"], default="transformers")
    parser.add_argument("--images", type=Path, nargs="+", default=sorted((GOLDEN / "images").glob("*.png")))
    parser.add_argument("--copies", type=int, default=1, help="embed every photograph this many times")
    parser.add_argument("--qformer", type=Path, default=ROOT / "target/release/qformer")
    return parser.parse_args()


def write_with_transformers(folder):
    config = Blip2Config(
        vision_config=Blip2VisionConfig().to_dict(),
        qformer_config=Blip2QFormerConfig(vocab_size=30523, use_qformer_text_input=True).to_dict(),
    )
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(config)
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, 0.02)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.add_(1.0)
    model.half().save_pretrained(folder, max_shard_size="1GB")
    BlipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(GOLDEN / "model" / name, folder)


def run(command):
    """Runs qformer; returns its peak memory in bytes."""
    subprocess.run([str(part) for part in command], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def difference(name, found, expected):
    error = (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()
    print(f"{name:<16} differs by {error:.1e} from transformers")
    return error


def main():
    options = arguments()
    torch.set_grad_enabled(False)
    images = [str(path) for path in options.images] * options.copies
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        if options.written_by == "transformers":
            write_with_transformers(folder)
        else:
            tokenizer = ["--tokenizer", GOLDEN / "model"]
            run([options.qformer, "init", "--preset", "blip2-vit-g", "--output", folder, *tokenizer])
        features, encoded, scores = (Path(temporary) / name for name in ["features", "encoded", "scores.json"])
        inputs = ["--model", folder, "--text", *TEXTS]
        peak = run(
            [options.qformer, "embed", *inputs, "--images", *images, "--output", features, "--save-vision-output", encoded]
        )
        weights = 4 * 1_172_032_258
        print(f"peak memory {peak / 2**30:.2f} GiB, {peak / weights:.2f} of the f32 weights, {len(images)} images")
        run([options.qformer, "score", *inputs, "--features", encoded, "--output", scores])
        found = load_file(features)
        scored = json.loads(scores.read_text())

        model = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
        processor = BlipImageProcessorPil.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        count = len(options.images)
        pixels = processor([Image.open(p).convert("RGB") for p in options.images], return_tensors="pt").pixel_values
        vision = model.vision_model(pixels).last_hidden_state
        queries = model.query_tokens.expand(count, -1, -1)
        output = model.qformer(query_embeds=queries, encoder_hidden_states=vision).last_hidden_state
        image_features = torch.nn.functional.normalize(model.vision_projection(output), dim=-1)
        errors = [
            difference("query_output", found["query_output"][:count], output),
            difference("image_features", found["image_features"][:count], image_features),
        ]
        for index, text in enumerate(TEXTS):
            tokens = tokenizer(text, return_tensors="pt")
            itm = model(
                pixel_values=pixels,
                input_ids=tokens.input_ids.expand(count, -1),
                attention_mask=tokens.attention_mask.expand(count, -1),
                use_image_text_matching_head=True,
            ).logits_per_image
            ours = torch.tensor([row[index] for row in scored["itm_logits"][:count]])
            errors.append(difference(f"itm_logits {index}", ours, itm))
            itc = model(pixel_values=pixels, **tokens, use_image_text_matching_head=False).logits_per_image
            ours = torch.tensor([row[index] for row in scored["itc"][:count]])
            errors.append(difference(f"itc {index}", ours, itc.flatten()))
        if not max(errors) < 1e-3:
            raise SystemExit("the difference is larger than 1e-3")


main()
