"""The same work in PyTorch beside qformer-bench on one GPU, in one run: passes of the Q-Former (eager,
scaled_dot_product_attention, torch.compile) and single operations, in bf16. Answers are compared first.

    pip install torch transformers
    cargo build --release && python benches/peers/gpu.py

Passes start from float32 in the host's memory and end there, as qformer's do; what PyTorch takes when all
is on the GPU already stands beside it. Operations run many times between two waits, on CUDA recorded as a
graph, as qformer-bench runs its own.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig

ROOT = Path(__file__).resolve().parents[2]
# Relative distance of two implementations that both round to bf16: twice what one is allowed.
TOLERANCE = {"cuda": 6e-2, "cpu": 2e-2}
# Answers of all pairs are computed for so many images at most; larger batches repeat these.
MOST_ANSWERS = 8


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch-sizes", default="1,8,64,256")
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each measurement")
    parser.add_argument("--size", choices=["blip2", "small"], default="blip2", help="small: to try the script")
    parser.add_argument("--skip-compile", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--bench", type=Path, default=ROOT / "target/release/qformer-bench")
    parser.add_argument("--json", type=Path, help="writes the tables to this file too")
    return parser.parse_args()


ARGUMENTS = arguments()
CUDA = ARGUMENTS.device == "cuda"
ROWS = {"passes": [], "operations": [], "failed": []}


def finish():
    if CUDA:
        torch.cuda.synchronize()


def random_model(folder):
    """A Q-Former of the real size; one block of the image encoder stands for all."""
    if ARGUMENTS.size == "blip2":
        vision, qformer = Blip2VisionConfig(num_hidden_layers=1), Blip2QFormerConfig(vocab_size=30523, use_qformer_text_input=True)
    else:
        vision = Blip2VisionConfig(num_hidden_layers=1, hidden_size=64, intermediate_size=128, num_attention_heads=2, image_size=56)
        qformer = Blip2QFormerConfig(
            vocab_size=512, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=256,
            encoder_hidden_size=64, use_qformer_text_input=True,
        )
    config = Blip2Config(vision_config=vision.to_dict(), qformer_config=qformer.to_dict())
    model = Blip2ForImageTextRetrieval(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.02)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    model.save_pretrained(folder, max_shard_size="20GB")
    return model.to(ARGUMENTS.device, torch.bfloat16 if CUDA else torch.float32)


def qformer_bench(*given):
    command = [ARGUMENTS.bench, *given, "--device", ARGUMENTS.device, "--seconds", ARGUMENTS.seconds, "--json"]
    output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


def median_seconds(work, launches=1):
    work()
    finish()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < ARGUMENTS.seconds:
        begin = time.perf_counter()
        work()
        finish()
        times.append((time.perf_counter() - begin) / launches)
    return statistics.median(times)


def operation_seconds(work, stream):
    """Seconds of one launch among many; on CUDA they are recorded as a graph on the work's own stream."""
    work()
    finish()
    begin = time.perf_counter()
    work()
    finish()
    launches = min(200, max(1, math.ceil(5e-3 / (time.perf_counter() - begin))))
    if not CUDA:
        return median_seconds(lambda: [work() for _ in range(launches)], launches)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(launches):
            work()
    return median_seconds(graph.replay, launches)


def relative_error(found, expected):
    found, expected = found.float().cpu(), expected.float().cpu()
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()


class Passes:
    """The passes on inputs that are where the model is."""

    def __init__(self, model):
        self.model = model

    def image(self, features):
        features = self.model.vision_model.post_layernorm(features)
        queries = self.model.query_tokens.expand(features.shape[0], -1, -1)
        return self.model.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state

    def text(self, ids, mask):
        embeds = self.model.embeddings(input_ids=ids)
        output = self.model.qformer(query_embeds=embeds, query_length=0, attention_mask=mask).last_hidden_state
        return F.normalize(self.model.text_projection(output[:, 0]), dim=-1)

    def joint(self, features, ids, mask):
        model = self.model
        features = model.vision_model.post_layernorm(features)
        count = model.query_tokens.shape[1]
        mask = torch.cat([torch.ones(len(ids), count, dtype=mask.dtype, device=mask.device), mask], dim=1)
        queries = model.query_tokens.expand(len(ids), -1, -1)
        embeds = model.embeddings(input_ids=ids, query_embeds=queries)
        output = model.qformer(
            query_embeds=embeds, query_length=count, attention_mask=mask, encoder_hidden_states=features
        ).last_hidden_state
        return model.itm_head(output[:, :count]).mean(dim=1)


def variants(model, is_last):
    """Name, attention, the passes it is measured on, and what turns a pass into that variant of it."""
    everything = ["image", "text", "joint"]
    yield "eager", "eager", everything, lambda work: work
    # Where transformers lets its Q-Former choose.
    if getattr(model.qformer, "_supports_sdpa", False):
        yield "SDPA", "sdpa", everything, lambda work: work
    # At the last batch size all passes, else the image pass alone, since compiling takes its time.
    if not ARGUMENTS.skip_compile:
        yield "torch.compile", "eager", everything if is_last else ["image"], torch.compile


def measure_passes(model, folder, batch, is_last):
    answer_file = Path(folder) / "answers.safetensors"
    compared = min(batch, MOST_ANSWERS)
    given = ["image", "text", "joint", "--model", folder]
    checked = qformer_bench(*given, "--batch-size", compared, "--save-answers", answer_file)
    answers = load_file(answer_file)
    report = checked if compared == batch else qformer_bench(*given, "--batch-size", batch)
    ours = {result["part"]: result["median_s"] for result in report["results"]}

    features, ids, mask = answers["vision_output"], answers["input_ids"].long(), answers["attention_mask"].long()
    inputs = {"image": [features], "text": [ids, mask], "joint": [features, ids, mask]}
    expected = {
        "image": answers["query_output"],
        "text": answers["text_features"],
        "joint": answers["itm_logits"].diagonal(dim1=0, dim2=1).T,
    }
    kind = next(model.parameters()).dtype

    def bring(tensor):
        return tensor.to(ARGUMENTS.device, kind if tensor.is_floating_point() else tensor.dtype)

    passes = Passes(model)
    for variant, attention, parts, change in variants(model, is_last):
        model.qformer.set_attn_implementation(attention)
        for part in parts:
            given, work = inputs[part], change(getattr(passes, part))
            try:
                found = work(*[bring(x) for x in given])
            except torch._dynamo.exc.TorchDynamoException as error:
                print(f"{part:<7} {batch:>5} {variant:<14} FAILED: {str(error).splitlines()[0]}", flush=True)
                ROWS["failed"].append({"part": part, "batch": batch, "peer": variant, "error": str(error)})
                continue
            difference = relative_error(found, expected[part])
            if not difference < TOLERANCE[ARGUMENTS.device]:
                raise SystemExit(f"{part}: {variant} and qformer differ by {difference:.1e}")
            # The captions' lengths repeat, too, so that a larger batch is a repetition.
            host = [x.repeat(batch // len(x), *[1] * (x.dim() - 1)) for x in given]
            there = [bring(x) for x in host]
            seconds = median_seconds(lambda: work(*[bring(x) for x in host]).float().cpu())
            inside = median_seconds(lambda: work(*there))
            ROWS["passes"].append({
                "part": part, "batch": batch, "peer": variant, "peer_s": seconds, "peer_inside_s": inside,
                "qformer_s": ours[part], "ratio": seconds / ours[part], "difference": difference,
            })
            print(
                f"{part:<7} {batch:>5} {variant:<14} {seconds * 1e3:>11.3f} {inside * 1e3:>11.3f} "
                f"{ours[part] * 1e3:>11.3f} {seconds / ours[part]:>6.2f}x {difference:>10.1e}",
                flush=True,
            )


def peer_of(operation, shape):
    """The same operation in PyTorch, as a function to be timed; none if it has no like there."""
    kind = torch.bfloat16 if CUDA else torch.float32
    numbers = [int(number) for number in re.findall(r"\d+", shape)]

    def random(*size):
        return torch.randn(*size, device=ARGUMENTS.device, dtype=kind)

    def differentiated(output, inputs):
        gradient = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)

    def attention(batch, queries, keys, heads, width):
        q, k, v = random(batch, heads, queries, width), random(batch, heads, keys, width), random(batch, heads, keys, width)
        if operation.endswith("backward"):
            inputs = [x.requires_grad_() for x in (q, k, v)]
            return differentiated(F.scaled_dot_product_attention(*inputs), inputs)
        return lambda: F.scaled_dot_product_attention(q, k, v)

    if operation.startswith("gemm"):
        rows, inputs, outputs = numbers
        x, weight, bias = random(rows, inputs), random(outputs, inputs), random(outputs)
        if operation == "gemm":
            return lambda: F.linear(x, weight, bias)
        if operation == "gemm, GELU":
            return lambda: F.gelu(F.linear(x, weight, bias))
        trained = [weight.requires_grad_(), bias.requires_grad_()]
        if operation == "gemm backward":
            trained.append(x.requires_grad_())
        return differentiated(F.linear(x, weight, bias), trained)
    if operation in ("attention", "attention backward"):
        batch, length, heads, width = numbers
        return attention(batch, length, length, heads, width)
    if operation in ("cross-attention", "cross-attention backward"):
        batch, sets, queries, keys, heads, width = numbers
        return attention(batch, sets * queries, keys, heads, width)
    if operation == "layer norm":
        rows, width = numbers
        x, weight, bias = random(rows, width), random(width), random(width)
        return lambda: F.layer_norm(x, (width,), weight, bias)
    if operation == "layer norm backward":
        rows, width = numbers
        inputs = [random(rows, width).requires_grad_(), random(width).requires_grad_(), random(width).requires_grad_()]
        return differentiated(F.layer_norm(inputs[0], (width,), *inputs[1:]), inputs)
    if operation.startswith("cross-entropy"):
        rows, words = numbers
        logits, labels = random(rows, words), torch.randint(words, (rows,), device=ARGUMENTS.device)
        if operation == "cross-entropy":
            return lambda: F.cross_entropy(logits, labels, label_smoothing=0.1)
        return differentiated(F.cross_entropy(logits.requires_grad_(), labels, label_smoothing=0.1), [logits])
    if operation == "AdamW":
        parameter = torch.nn.Parameter(torch.randn(numbers[0], device=ARGUMENTS.device))
        parameter.grad = torch.randn_like(parameter)
        optimiser = torch.optim.AdamW([parameter], lr=1e-6, fused=True, capturable=CUDA)
        return optimiser.step
    return None


def measure_operations(folder, batch):
    # Gradients are computed on the stream of what they are gradients of: one stream for all.
    stream = torch.cuda.Stream() if CUDA else None
    for case in qformer_bench("kernels", "--model", folder, "--batch-size", batch)["kernels"]:
        with torch.cuda.stream(stream):
            work = peer_of(case["operation"], case["shape"])
            if work is None:
                continue
            seconds, ours = operation_seconds(work, stream), case["median_s"]
        ROWS["operations"].append({**case, "peer_s": seconds, "ratio": seconds / ours})
        print(
            f"{case['operation']:<27} {case['shape']:<34} {seconds * 1e6:>10.1f} {ours * 1e6:>10.1f} "
            f"{seconds / ours:>6.2f}x {100 * case['share_of_limit']:>8.1f}%",
            flush=True,
        )
        del work


def main():
    torch.set_grad_enabled(False)
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    ROWS["software"] = f"torch {torch.__version__} on {device}"
    print(f"{ROWS['software']}; times are medians")
    batches = [int(size) for size in ARGUMENTS.batch_sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(folder)
        print(f"{'part':<7} {'batch':>5} {'peer':<14} {'peer ms':>11} {'inside ms':>11} {'qformer ms':>11} {'ratio':>7} {'difference':>10}")
        for batch in batches:
            measure_passes(model, folder, batch, is_last=batch == batches[-1])
        del model
        torch.set_grad_enabled(True)
        print(f"\n{'operation':<27} {'shape':<34} {'peer µs':>10} {'qformer µs':>10} {'ratio':>7} {'of limit':>9}")
        measure_operations(folder, max(batches))
    if ARGUMENTS.json:
        ARGUMENTS.json.write_text(json.dumps(ROWS, indent=1))
    if ROWS["failed"]:
        raise SystemExit(f"{len(ROWS['failed'])} of the peers' measurements failed")


main()
