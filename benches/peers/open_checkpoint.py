"""Opens a checkpoint that qformer wrote, such as RUN/checkpoints/latest, in transformers, and compares.

    pip install torch transformers pillow
    cargo build --release && python benches/peers/open_checkpoint.py DIR

Tells which tensors transformers misses or does not expect: none but the image encoder's, and those only where the
run had none. Then both read random image features and a few texts: features, contrastive similarities (ITC) and
matching logits (ITM) are compared. Last, transformers is called as its documentation does, with AutoProcessor's inputs of
pictures and texts; where the folder has the image encoder, `qformer score` of the same is compared.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, Blip2ForImageTextRetrieval

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["a red cat sits on a table", "a cup of coffee", "two dogs"]
IMAGES = 3
# Of float32 implementations that add in another order.
TOLERANCE = 1e-4


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="DIR")
    parser.add_argument("--qformer", type=Path, default=ROOT / "target/release/qformer")
    return parser.parse_args()


def in_image_encoder(name):
    return name.startswith("vision_model.") and not name.startswith("vision_model.post_layernorm.")


def open_in_transformers(folder):
    model, info = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    encoder = [name for name in missing if in_image_encoder(name)]
    others = [name for name in missing if not in_image_encoder(name)]
    whole_encoder = [name for name in model.state_dict() if in_image_encoder(name)]
    if encoder:
        print(f"missing: {len(encoder)} tensors of the image encoder, from {encoder[0]} to {encoder[-1]}")
    print(f"missing: {', '.join(others) or 'nothing' + ' else' * bool(encoder)}")
    print(f"not expected: {', '.join(unexpected) or 'nothing'}")
    if others or unexpected or info["mismatched_keys"] or len(encoder) not in (0, len(whole_encoder)):
        raise SystemExit("transformers does not find the tensors that it expects")
    return model.eval(), not encoder


def ask_qformer(options, vision_output):
    with tempfile.TemporaryDirectory() as temporary:
        encoded, features = Path(temporary) / "encoded.safetensors", Path(temporary) / "features.safetensors"
        save_file({"vision_output": vision_output}, encoded)
        inputs = ["--model", options.checkpoint, "--device", "cpu", "--features", encoded, "--text", *TEXTS]

        def run(command, *more):
            return subprocess.run([options.qformer, command, *inputs, *more], check=True, stdout=subprocess.PIPE).stdout

        run("embed", "--output", features)
        scores = json.loads(run("score", "--json"))
        found = load_file(features)
    return {
        "image features": found["image_features"],
        "text features": found["text_features"],
        "ITC": torch.tensor(scores["itc"]),
        "ITM logits": torch.tensor(scores["itm_logits"]),
    }


def ask_transformers(model, folder, vision_output):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image = model.vision_model.post_layernorm(vision_output)
    queries = model.query_tokens.expand(IMAGES, -1, -1)
    output = model.qformer(query_embeds=queries, encoder_hidden_states=image).last_hidden_state
    image_features = torch.nn.functional.normalize(model.vision_projection(output), dim=-1)
    text_features, logits = [], []
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt")
        embedded = model.embeddings(input_ids=tokens.input_ids)
        output = model.qformer(query_embeds=embedded, query_length=0, attention_mask=tokens.attention_mask)
        text_features.append(torch.nn.functional.normalize(model.text_projection(output.last_hidden_state[:, 0]), dim=-1))
        embedded = model.embeddings(input_ids=tokens.input_ids.expand(IMAGES, -1), query_embeds=queries)
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        output = model.qformer(
            query_embeds=embedded, query_length=queries.shape[1], attention_mask=mask, encoder_hidden_states=image
        )
        logits.append(model.itm_head(output.last_hidden_state[:, : queries.shape[1]]).mean(dim=1))
    text_features = torch.cat(text_features)
    return {
        "image features": image_features,
        "text features": text_features,
        "ITC": (image_features @ text_features.t()).amax(dim=1),
        "ITM logits": torch.stack(logits, dim=1),
    }


def draw(folder):
    """Pictures of random blocks, in files."""
    generator, paths = torch.Generator().manual_seed(1), []
    for number in range(IMAGES):
        blocks = torch.randint(256, (7, 7, 3), generator=generator, dtype=torch.uint8).numpy()
        paths.append(Path(folder) / f"{number}.png")
        Image.fromarray(blocks).resize((112, 112)).save(paths[-1])
    return paths


def call_as_documented(model, folder, pictures):
    """Of picture i with text i."""
    processor = AutoProcessor.from_pretrained(folder)
    images = [Image.open(path) for path in pictures]
    inputs = processor(images=images, text=TEXTS, return_tensors="pt", padding=True)
    logits = model(**inputs, use_image_text_matching_head=True).logits_per_image
    similarity = model(**inputs, use_image_text_matching_head=False).logits_per_image
    return {"ITC of pictures": similarity, "ITM logits of pictures": logits}


def score_pictures(options, pictures):
    command = [options.qformer, "score", "--model", options.checkpoint, "--device", "cpu", "--matching", "classifier"]
    command += ["--json", "--text", *TEXTS, "--images", *pictures]
    scores = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    logits = torch.tensor(scores["itm_logits"])
    return {
        "ITC of pictures": torch.tensor(scores["itc"]),
        "ITM logits of pictures": torch.stack([logits[number, number] for number in range(IMAGES)]),
    }


def main():
    options = arguments()
    torch.set_grad_enabled(False)
    model, has_encoder = open_in_transformers(options.checkpoint)
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    vision_output = torch.randn(IMAGES, tokens, vision.hidden_size, generator=torch.Generator().manual_seed(0))
    found = ask_qformer(options, vision_output)
    expected_of = ask_transformers(model, options.checkpoint, vision_output)
    with tempfile.TemporaryDirectory() as temporary:
        pictures = draw(temporary)
        of_pictures = call_as_documented(model, options.checkpoint, pictures)
        print("transformers reads pictures and texts as its documentation says")
        if has_encoder:
            expected_of |= of_pictures
            found |= score_pictures(options, pictures)
    worst = 0.0
    for name, expected in expected_of.items():
        error = (torch.linalg.norm(found[name] - expected) / torch.linalg.norm(expected)).item()
        print(f"{name:<22} differs by {error:.1e} from transformers")
        worst = max(worst, error)
    if not worst < TOLERANCE:
        raise SystemExit(f"the difference is larger than {TOLERANCE}")


main()
