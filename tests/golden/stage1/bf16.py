"""Writes clear.safetensors, a golden step that bf16 can follow, and bf16.json, how near plain PyTorch follows in bf16.

    python tests/golden/stage1/bf16.py

Needs torch and safetensors. The formulas are the golden step's, written anew here; in double precision they have to
give LAVIS's gradients and ten losses, or nothing is written. In bf16 every weight, every activation and every gradient
of an activation is rounded to bf16; sums, statistics, losses, the gradients of parameters and the optimiser's numbers
are f32, as under autocast.

ITC goes by the query that wins, and in five of LAVIS's pairs one wins by so little that in bf16 another may, which
changes gradients by more than all rounding. In the clear batch all win by more than ten times what bf16 is off, and so
do the hardest negatives. Its captions are three of LAVIS's, its images the three of 400 random ones that are clearest.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent
CONFIG = json.loads((FOLDER / "config.json").read_text())
QFORMER = CONFIG["qformer_config"]
RECIPE = json.loads((FOLDER / "training.json").read_text())
LAYERS, HEADS, QUERIES = QFORMER["num_hidden_layers"], QFORMER["num_attention_heads"], CONFIG["num_query_tokens"]
SMOOTHING = 0.1
BATCH = ["vision_output", "input_ids", "attention_mask"]


class Rounded(torch.autograd.Function):
    """To bf16, and so the gradient."""

    @staticmethod
    def forward(_, x):
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(_, dx):
        return dx.bfloat16().to(dx.dtype)


class Weight(torch.autograd.Function):
    """To bf16; the gradient of a parameter is not rounded."""

    @staticmethod
    def forward(_, x):
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(_, dx):
        return dx


class Step:
    """The losses of a batch, by LAVIS's names of the parameters."""

    def __init__(self, parameters, rounded):
        self.parameters = parameters
        self.activation = Rounded.apply if rounded else lambda x: x
        self.weight = Weight.apply if rounded else lambda x: x

    def read(self, name):
        return self.weight(self.parameters[name])

    def linear(self, name, x):
        return self.activation(F.linear(x, self.read(f"{name}.weight"), self.read(f"{name}.bias")))

    def norm(self, name, x, epsilon=QFORMER["layer_norm_eps"]):
        weight, bias = self.read(f"{name}.weight"), self.read(f"{name}.bias")
        return self.activation(F.layer_norm(x, x.shape[-1:], weight, bias, epsilon))

    def attention(self, name, x, keys_of, mask=None, earlier=None):
        """The layer's output, and its keys and values; those of `earlier` rows are put before them."""
        split = lambda x: x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
        sources = [("query", x), ("key", keys_of), ("value", keys_of)]
        q, k, v = (split(self.linear(f"{name}.self.{part}", source)) for part, source in sources)
        own = (k, v)
        if earlier is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(earlier, own))
        scores = self.activation(q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores + mask
        found = self.activation(self.activation(scores.softmax(-1)) @ v)
        y = self.linear(f"{name}.output.dense", found.transpose(1, 2).flatten(2))
        return self.norm(f"{name}.output.LayerNorm", self.activation(x + y)), own

    def feed_forward(self, name, kind, x):
        inner = self.activation(F.gelu(self.linear(f"{name}.intermediate{kind}.dense", x)))
        y = self.linear(f"{name}.output{kind}.dense", inner)
        return self.norm(f"{name}.output{kind}.LayerNorm", self.activation(x + y))

    def trunk(self, embedded, queries, images=None, mask=None, earlier=None):
        """Rows of `queries`, then of text, through all layers; keys and values of each layer besides."""
        x, caches = self.norm("Qformer.bert.embeddings.LayerNorm", embedded), []
        for i in range(LAYERS):
            name = f"Qformer.bert.encoder.layer.{i}"
            x, cache = self.attention(f"{name}.attention", x, x, mask, earlier and earlier[i])
            caches.append(cache)
            q, t = x.split([queries, x.shape[1] - queries], 1)
            parts = []
            if queries:
                if i % QFORMER["cross_attention_frequency"] == 0:
                    q, _ = self.attention(f"{name}.crossattention", q, images)
                parts.append(self.feed_forward(name, "_query", q))
            if t.shape[1]:
                parts.append(self.feed_forward(name, "", t))
            x = torch.cat(parts, 1)
        return x, caches

    def embed(self, ids):
        embeddings = "Qformer.bert.embeddings"
        words = F.embedding(ids, self.read(f"{embeddings}.word_embeddings.weight"))
        return self.activation(words + self.read(f"{embeddings}.position_embeddings.weight")[: ids.shape[1]])

    def unit(self, name, x):
        return self.activation(F.normalize(self.linear(name, x), dim=-1))

    def losses(self, batch):
        """ITC, ITM and ITG, and the cosines of ITC [images, texts, queries]."""
        vision_output, ids, mask = batch
        count, length = ids.shape
        own = torch.arange(count)
        hidden = lambda mask: (1.0 - mask.to(vision_output.dtype)) * -10000.0  # noqa: E731
        images = self.norm("ln_vision", self.activation(vision_output), CONFIG["vision_config"]["layer_norm_eps"])
        queries = self.read("query_tokens").expand(count, -1, -1)
        query_outputs, caches = self.trunk(queries, QUERIES, images)
        text_outputs, _ = self.trunk(self.embed(ids), 0, mask=hidden(mask)[:, None, None])

        query_features = self.unit("vision_proj", query_outputs)
        text_features = self.unit("text_proj", text_outputs[:, 0])
        cosines = lambda queries, texts: torch.einsum("iqe,te->itq", queries, texts)  # noqa: E731
        # One side of each matrix has a gradient.
        temperature = self.parameters["temp"]
        to_texts = cosines(query_features, text_features.detach()).amax(-1) / temperature
        to_images = cosines(query_features.detach(), text_features).amax(-1).T / temperature
        entropy = lambda logits: F.cross_entropy(logits, own, label_smoothing=SMOOTHING)  # noqa: E731
        contrastive = (entropy(to_texts) + entropy(to_images)) / 2

        others = ~torch.eye(count, dtype=torch.bool)
        hardest = lambda logits: logits.detach().masked_fill(~others, -torch.inf).argmax(1)  # noqa: E731
        texts_of = torch.cat([own, own, hardest(to_texts)])
        images_of = torch.cat([own, hardest(to_images), own])
        seen = F.pad(mask[texts_of], (QUERIES, 0), value=1)
        together = torch.cat([self.read("query_tokens").expand(3 * count, -1, -1), self.embed(ids[texts_of])], 1)
        outputs, _ = self.trunk(together, QUERIES, images[images_of], hidden(seen)[:, None, None])
        logits = self.linear("itm_head", self.activation(outputs[:, :QUERIES].mean(1)))
        matching = F.cross_entropy(logits, F.pad(torch.ones_like(own), (0, 2 * count)))

        begun = ids.clone()
        begun[:, 0] = RECIPE["bos_token_id"]
        causal = F.pad(torch.ones(length, length).tril(), (QUERIES, 0), value=1)
        seen = F.pad(mask, (QUERIES, 0), value=1)[:, None] * causal
        outputs, _ = self.trunk(self.embed(begun), 0, mask=hidden(seen)[:, None], earlier=caches)
        head = "Qformer.cls.predictions"
        transformed = self.activation(F.gelu(self.linear(f"{head}.transform.dense", outputs)))
        transformed = self.norm(f"{head}.transform.LayerNorm", transformed)
        words = self.read("Qformer.bert.embeddings.word_embeddings.weight")
        logits = self.activation(F.linear(transformed, words, self.read(f"{head}.bias")))
        wanted = ids.masked_fill(mask == 0, -100)[:, 1:].flatten()
        captioning = F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted, label_smoothing=SMOOTHING)
        return torch.stack([contrastive, matching, captioning]), cosines(query_features, text_features).detach()


# Single precision holds bf16 exactly, and sums in it.
DOUBLE, BF16 = (torch.float64, False), (torch.float32, True)


def started(precision):
    """The golden parameters, and their step."""
    dtype, rounded = precision
    model = load_file(FOLDER / "model.safetensors")
    parameters = {name: tensor.to(dtype).clone().requires_grad_() for name, tensor in model.items()}
    return parameters, Step(parameters, rounded)


def of_dtype(batch, precision):
    vision_output, ids, mask = batch
    return vision_output.to(precision[0]), ids, mask


def gradients(batch, weights, precision):
    """Of the weighted losses, and the cosines."""
    parameters, step = started(precision)
    losses, cosines = step.losses(of_dtype(batch, precision))
    (losses * torch.tensor(weights)).sum().backward()
    found = {name: p.grad.double() for name, p in parameters.items() if p.grad is not None}
    return found, cosines.double()


def learn(batch, precision):
    """The losses before each step of the recipe: their sum, ITC, ITM and ITG."""
    parameters, step = started(precision)
    # The groups of LAVIS 1.0.2.
    spared = lambda name: parameters[name].ndim < 2 or any(part in name for part in ["bias", "ln", "bn"])  # noqa: E731
    groups = [
        {"params": [p for name, p in parameters.items() if spared(name) == without], "weight_decay": decay}
        for without, decay in [(False, RECIPE["weight_decay"]), (True, 0.0)]
    ]
    optimiser = torch.optim.AdamW(groups, RECIPE["learning_rate"], RECIPE["betas"], RECIPE["epsilon"])
    found = []
    for _ in range(RECIPE["steps"]):
        losses, _ = step.losses(of_dtype(batch, precision))
        found.append(torch.cat([losses.sum()[None], losses]).detach().double())
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
    return torch.stack(found)


def distances(found, wanted):
    """By tensor, in parts of its length; a key's bias, of which the softmax sees nothing, in parts of the value's."""
    scales = {name: wanted[name.replace("key.bias", "value.bias")].norm() for name in wanted}
    return {name: ((found[name] - wanted[name]).norm() / scale).item() for name, scale in scales.items() if scale > 0}


CLEAR_SEEDS, CLEAR_TEXTS = (253, 70, 238), [2, 3, 4]


def clear_batch(batch):
    vision_output, ids, mask = batch
    generators = [torch.Generator().manual_seed(seed) for seed in CLEAR_SEEDS]
    images = [torch.randn(vision_output.shape[1:], generator=generator) for generator in generators]
    return torch.stack(images), ids[CLEAR_TEXTS], mask[CLEAR_TEXTS]


def least_margin(cosines):
    """Between any winner, or hardest negative, and the next."""
    first, second = cosines.topk(2, -1).values.unbind(-1)
    negatives = first.masked_fill(torch.eye(len(first), dtype=torch.bool), -torch.inf)
    gaps = [negatives.topk(2, dim).values.diff(dim=dim).abs().min() for dim in (0, 1)]
    return min((first - second).min(), *gaps)


# How far ten steps are off is chance: a winner or a negative that is no longer clear may be another from there on. So
# it is the largest error of several runs, with features that bf16 does not tell apart.
RUNS = 16


def largest_errors(batch, wanted):
    """Of the losses of each step, in parts of the loss."""
    generator, errors = torch.Generator().manual_seed(0), []
    for _ in range(RUNS):
        nearly = batch[0] * (1.0 + 2.0**-9 * (2.0 * torch.rand(batch[0].shape, generator=generator) - 1.0))
        errors.append((learn((nearly, *batch[1:]), BF16) - wanted).abs() / wanted)
    return torch.stack(errors).amax(0)


def short(x):
    return float(f"{x:.3g}")


def main():
    torch.set_num_threads(1)
    expected = load_file(FOLDER / "expected.safetensors")
    of_lavis = {name[len("grad.") :]: g.double() for name, g in expected.items() if name.startswith("grad.")}
    tensors = load_file(FOLDER / "batch.safetensors")
    batch = tuple(tensors[name] for name in BATCH)

    # LAVIS's gradients are stored in single precision.
    exact, _ = gradients(batch, [1.0] * 3, DOUBLE)
    assert max(distances(exact, of_lavis).values()) < 1e-7
    assert ((learn(batch, DOUBLE) - expected["losses"]).abs() < 1e-12 * expected["losses"]).all()

    clear = clear_batch(batch)
    exact, cosines = gradients(clear, [1.0] * 3, DOUBLE)
    rounded, rounded_cosines = gradients(clear, [1.0] * 3, BF16)
    assert least_margin(cosines) > 10.0 * (rounded_cosines - cosines).abs().max()
    losses = learn(clear, DOUBLE)
    of_batch = dict(zip(BATCH, clear)) | {"losses": losses}
    save_file(of_batch | {f"grad.{name}": g.float() for name, g in exact.items()}, FOLDER / "clear.safetensors")

    parts = lambda weights: [gradients(batch, weights, precision)[0] for precision in (BF16, DOUBLE)]  # noqa: E731
    rows = lambda errors: {name: short(error) for name, error in sorted(errors.items())}  # noqa: E731
    largest = largest_errors(clear, losses).tolist()
    errors = {
        "clear": {"gradients": rows(distances(rounded, exact)), "losses": [[short(x) for x in row] for row in largest]},
        "matching_and_captioning": rows(distances(*parts([0.0, 1.0, 1.0]))),
    }
    (FOLDER / "bf16.json").write_text(json.dumps(errors, indent=1) + "\n")


main()
