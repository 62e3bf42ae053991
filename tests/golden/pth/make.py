"""Writes lavis.pth, as LAVIS saves its checkpoints, and model.safetensors, the same tensors by Hugging Face's names.

Run with torch 2 and safetensors. Values are random and of no use but to be read.
"""

import pathlib
from collections import OrderedDict

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent
QUERIES, WIDTH, HIDDEN, FEED_FORWARD, EMBEDDING = 4, 16, 16, 32, 8
VOCABULARY, POSITIONS, LAYERS, CROSS_ATTENTION_FREQUENCY = 139, 32, 3, 2

random = torch.Generator().manual_seed(0)
theirs, ours = OrderedDict(), {}


def draw(*shape):
    return 0.3 * torch.randn(shape, generator=random)


def put(lavis, hugging_face, tensor):
    """The tensor by LAVIS's name and, as float32 in memory of its own, by Hugging Face's."""
    theirs[lavis] = tensor
    if hugging_face:
        ours[hugging_face] = tensor.detach().float().clone(memory_format=torch.contiguous_format)


def linear(lavis, hugging_face, outputs, inputs):
    put(f"{lavis}.weight", f"{hugging_face}.weight", draw(outputs, inputs))
    put(f"{lavis}.bias", f"{hugging_face}.bias", draw(outputs))


def norm(lavis, hugging_face, width):
    put(f"{lavis}.weight", f"{hugging_face}.weight", 1 + draw(width))
    put(f"{lavis}.bias", f"{hugging_face}.bias", draw(width))


def layer(index):
    lavis, hugging_face = f"Qformer.bert.encoder.layer.{index}", f"qformer.encoder.layer.{index}"

    def attention(name, width):
        # Three views of one storage.
        weights = draw(HIDDEN * (HIDDEN + 2 * width))
        cut = weights.split([HIDDEN * HIDDEN, HIDDEN * width, HIDDEN * width])
        for part, weight in zip(["query", "key", "value"], cut):
            here, there = f"{lavis}.{name}.self.{part}", f"{hugging_face}.{name}.attention.{part}"
            put(f"{here}.weight", f"{there}.weight", weight.view(HIDDEN, -1))
            put(f"{here}.bias", f"{there}.bias", draw(HIDDEN))
        linear(f"{lavis}.{name}.output.dense", f"{hugging_face}.{name}.output.dense", HIDDEN, HIDDEN)
        norm(f"{lavis}.{name}.output.LayerNorm", f"{hugging_face}.{name}.output.LayerNorm", HIDDEN)

    attention("attention", HIDDEN)
    if index % CROSS_ATTENTION_FREQUENCY == 0:
        attention("crossattention", WIDTH)
    for kind in ["", "_query"]:
        linear(f"{lavis}.intermediate{kind}.dense", f"{hugging_face}.intermediate{kind}.dense", FEED_FORWARD, HIDDEN)
        linear(f"{lavis}.output{kind}.dense", f"{hugging_face}.output{kind}.dense", HIDDEN, FEED_FORWARD)
        norm(f"{lavis}.output{kind}.LayerNorm", f"{hugging_face}.output{kind}.LayerNorm", HIDDEN)


put("query_tokens", "query_tokens", torch.nn.Parameter(draw(1, QUERIES, HIDDEN)))
put("temp", "temp", torch.tensor(0.07))
norm("ln_vision", "vision_model.post_layernorm", WIDTH)
bert = "Qformer.bert.embeddings"
put(f"{bert}.position_ids", None, torch.arange(POSITIONS).expand(1, -1))
put(f"{bert}.word_embeddings.weight", "embeddings.word_embeddings.weight", draw(VOCABULARY, HIDDEN))
# Not contiguous: the transpose of what is stored.
put(f"{bert}.position_embeddings.weight", "embeddings.position_embeddings.weight", draw(HIDDEN, POSITIONS).t())
norm(f"{bert}.LayerNorm", "qformer.layernorm", HIDDEN)
for index in range(LAYERS):
    layer(index)
head = "cls.predictions"
put(f"Qformer.{head}.bias", f"{head}.bias", draw(VOCABULARY))
linear(f"Qformer.{head}.transform.dense", f"{head}.transform.dense", HIDDEN, HIDDEN)
norm(f"Qformer.{head}.transform.LayerNorm", f"{head}.transform.LayerNorm", HIDDEN)
# Tied, so they share their storage.
put(f"Qformer.{head}.decoder.weight", None, theirs[f"{bert}.word_embeddings.weight"])
put(f"Qformer.{head}.decoder.bias", None, theirs[f"Qformer.{head}.bias"])
linear("vision_proj", "vision_projection", EMBEDDING, HIDDEN)
linear("text_proj", "text_projection", EMBEDDING, HIDDEN)
linear("itm_head", "itm_head", 2, HIDDEN)
# Other types.
for name, theirs_name, dtype in [
    ("text_projection.weight", "text_proj.weight", torch.float16),
    ("vision_projection.weight", "vision_proj.weight", torch.bfloat16),
    ("itm_head.bias", "itm_head.bias", torch.float64),
]:
    put(theirs_name, name, theirs[theirs_name].to(dtype))
theirs._metadata = OrderedDict({"": {"version": 1}})

optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": draw(4)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0}
config = {"run": {"task": "image_text_pretrain", "init_lr": 1e-4, "amp": True, "splits": ["train"], "path": None}}
checkpoint = {"model": theirs, "optimizer": optimizer, "config": config, "scaler": scaler, "epoch": 9}
torch.save(checkpoint, FOLDER / "lavis.pth")
save_file(ours, FOLDER / "model.safetensors", {"format": "pt"})
