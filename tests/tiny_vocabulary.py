"""A random model with so few tokens that everything it may write can be listed, and a tokenizer of one letter each."""

import itertools

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.fixtures.tiny_model import tiny_decoder

LETTERS = "abcde"
END = 5


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate([*LETTERS, "."])}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=".", pad_token=".", padding_side="left")


def make_model(**changed: int) -> PreTrainedModel:
    tokens = {"vocab_size": len(LETTERS) + 1, "eos_token_id": END, "pad_token_id": END}
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "head_dim": 4}
    sizes |= {"max_position_embeddings": 32} | changed
    return tiny_decoder(seed=3, initializer_range=0.6, **sizes, **tokens).eval()


@torch.no_grad()
def next_token(model, ids: list[int], temperature: float = 1.0) -> list[float]:
    """The probability of every token after these, in float64."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    return (logits / temperature).softmax(-1).tolist()


def continuations(model, prefix: list[int], most: int) -> dict[tuple[int, ...], float]:
    """Every continuation of at most so many tokens with its probability; END ends one."""
    open_, found = {(): 1.0}, {}
    for _ in range(most):
        longer = {}
        for ids, share in open_.items():
            for token, p in enumerate(next_token(model, prefix + list(ids))):
                (found if token == END else longer)[(*ids, token)] = share * p
        open_ = longer
    assert abs(sum(itertools.chain(found.values(), open_.values())) - 1) < 1e-6
    return found | open_
