"""The same work in transformers (PyTorch) and ONNX Runtime, beside qformer-bench: same weights, same
inputs, same machine, one run; answers are compared before anything is timed.

    pip install torch transformers onnx onnxruntime onnxscript
    cargo build --release && python benches/peers/qformer.py

Prints one line for each part and batch size: seconds (median) and the ratio peer / qformer.
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
    parser.add_argument("--parts", default="image,text,joint", help="of image, text, joint and vision")
    parser.add_argument("--batch-sizes", default="8,1")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=5.0, help="spent on each measurement")
    parser.add_argument("--text-length", type=int, default=32, help="LAVIS pads every caption to this")
    parser.add_argument("--bench", type=Path, default=ROOT / "target/release/qformer-bench")
    parser.add_argument("--skip-onnx", action="store_true")
    return parser.parse_args()


ARGUMENTS = arguments()
# Both libraries read this before they start their threads.
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig  # noqa: E402


def random_model(with_vision):
    """BLIP-2 with ViT-g at its real size; without vision, one block of it stands for all."""
    vision = Blip2VisionConfig(num_hidden_layers=39 if with_vision else 1)
    qformer = Blip2QFormerConfig(vocab_size=30523, use_qformer_text_input=True)
    config = Blip2Config(vision_config=vision.to_dict(), qformer_config=qformer.to_dict())
    model = Blip2ForImageTextRetrieval(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.02)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    return model


def median_seconds(work):
    work()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < ARGUMENTS.seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def relative_error(found, expected):
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()


def image_pass(model, answers):
    features = model.vision_model.post_layernorm(answers["vision_output"])
    queries = model.query_tokens.expand(features.shape[0], -1, -1)
    return lambda: model.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state


def text_pass(model, answers, length):
    ids = answers["input_ids"].long()
    mask = answers["attention_mask"].long()
    padding = max(0, length - ids.shape[1])
    ids, mask = (torch.nn.functional.pad(x, (0, padding)) for x in (ids, mask))

    def work():
        embeds = model.embeddings(input_ids=ids)
        output = model.qformer(query_embeds=embeds, query_length=0, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize(model.text_projection(output[:, 0]), dim=-1)

    return work


def joint_pass(model, answers):
    features = model.vision_model.post_layernorm(answers["vision_output"])
    ids, mask = answers["input_ids"].long(), answers["attention_mask"].long()
    count = model.query_tokens.shape[1]
    mask = torch.cat([torch.ones(len(ids), count, dtype=torch.long), mask], dim=1)

    def work():
        queries = model.query_tokens.expand(len(ids), -1, -1)
        embeds = model.embeddings(input_ids=ids, query_embeds=queries)
        output = model.qformer(
            query_embeds=embeds, query_length=count, attention_mask=mask, encoder_hidden_states=features
        ).last_hidden_state
        return model.itm_head(output[:, :count]).mean(dim=1)

    return work


def onnx_image_pass(model, answers, folder):
    import onnxruntime

    class ImagePass(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qformer, self.query_tokens = model.qformer, model.query_tokens

        def forward(self, features):
            queries = self.query_tokens.expand(features.shape[0], -1, -1)
            return self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state

    features = model.vision_model.post_layernorm(answers["vision_output"])
    path = Path(folder) / f"image_pass_{len(features)}.onnx"
    torch.onnx.export(ImagePass().eval(), (features,), str(path), input_names=["features"], dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = ARGUMENTS.threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, feed = session.get_inputs()[0].name, features.numpy()
    return lambda: torch.from_numpy(session.run(None, {name: feed})[0])


def main():
    parts = ARGUMENTS.parts.split(",")
    torch.set_num_threads(ARGUMENTS.threads)
    torch.set_grad_enabled(False)
    model = random_model("vision" in parts)
    print(f"torch {torch.__version__}, {ARGUMENTS.threads} threads; seconds are medians")
    print(f"{'part':<8} {'batch':>5} {'peer':<28} {'peer s':>9} {'qformer s':>10} {'ratio':>7} {'difference':>11}")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="20GB")
        for batch in (int(size) for size in ARGUMENTS.batch_sizes.split(",")):
            answer_file = Path(folder) / "answers.safetensors"
            command = [ARGUMENTS.bench, *parts, "--model", folder, "--save-answers", answer_file, "--json"]
            command += ["--batch-size", str(batch), "--threads", str(ARGUMENTS.threads)]
            command += ["--seconds", str(ARGUMENTS.seconds)]
            output = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout
            ours = {result["part"]: result["median_s"] for result in json.loads(output)["results"]}
            answers = load_file(answer_file)
            peers = []
            if "image" in parts:
                peers.append(("image", "transformers", image_pass(model, answers), answers["query_output"]))
                if not ARGUMENTS.skip_onnx:
                    peers.append(("image", "ONNX Runtime", onnx_image_pass(model, answers, folder), answers["query_output"]))
            if "text" in parts:
                longest = answers["input_ids"].shape[1]
                for length in dict.fromkeys([ARGUMENTS.text_length, longest]):
                    work = text_pass(model, answers, length)
                    peers.append(("text", f"transformers, padded to {length}", work, answers["text_features"]))
            if "joint" in parts:
                diagonal = answers["itm_logits"].diagonal(dim1=0, dim2=1).T
                peers.append(("joint", "transformers", joint_pass(model, answers), diagonal))
            if "vision" in parts:
                # Before the last norm, as qformer gives it: the hook sees that norm's input.
                seen = {}
                model.vision_model.post_layernorm.register_forward_pre_hook(lambda _, x: seen.setdefault("x", x[0]))

                def vision(pixels=answers["pixel_values"]):
                    seen.clear()
                    model.vision_model(pixels)
                    return seen["x"]

                peers.append(("vision", "transformers", vision, answers["encoded_pixels"]))
            for part, peer, work, expected in peers:
                difference = relative_error(work(), expected)
                if not difference < 1e-3:
                    raise SystemExit(f"{part}: {peer} and qformer differ by {difference:.1e}")
                seconds = median_seconds(work)
                ratio = seconds / ours[part]
                print(f"{part:<8} {batch:>5} {peer:<28} {seconds:>9.4f} {ours[part]:>10.4f} {ratio:>6.2f}x {difference:>11.1e}")


main()
