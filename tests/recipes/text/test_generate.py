"""Generation: the prompt is not returned, padding changes nothing, a seed means the same texts."""

import pytest
import torch

from reticent.errors import ConfigError
from reticent.recipes.text._generate import Decoding, generate
from tests.recipes.text.models import byte_tokenizer, gpt2, llama

PROMPTS = ["a cat", "z", "some longer prompt here"]


@pytest.fixture(params=[gpt2, llama], scope="module")
def model(request):
    return request.param().double()


def greedy(model, prompt, length):
    """The likeliest token, one at a time, without cache or padding."""
    ids = byte_tokenizer()(prompt)["input_ids"][:-1]  # without the end token that the tokenizer adds
    new = []
    for _ in range(length):
        with torch.no_grad():
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == 1:
            break
    return byte_tokenizer().decode(new, skip_special_tokens=True)


def test_a_batch_of_uneven_prompts_continues_each_as_if_alone(model):
    texts = generate(model, byte_tokenizer(), PROMPTS, decoding=Decoding(max_new_tokens=8))
    assert texts == [greedy(model, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "decoding", [Decoding(max_new_tokens=6, beams=3), Decoding(max_new_tokens=6, top_p=0.9)]
)
def test_beams_and_sampling_give_one_text_a_prompt(model, decoding):
    assert len(generate(model, byte_tokenizer(), PROMPTS, decoding=decoding, batch_size=2)) == 3


def test_a_beam_is_no_less_likely_than_the_greedy_text(model):
    def likelihood(text, prompt="a cat"):
        start = byte_tokenizer()(prompt)["input_ids"][:-1]
        ids = torch.tensor([start + byte_tokenizer()(text)["input_ids"][:-1]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        return sum(float(log_p[t - 1, ids[0, t]]) for t in range(len(start), ids.shape[1]))

    # ASCII only, so that text and tokens are the same thing.
    (plain,) = generate(model, byte_tokenizer(), ["a cat"], decoding=Decoding(max_new_tokens=3))
    (wide,) = generate(model, byte_tokenizer(), ["a cat"], decoding=Decoding(max_new_tokens=3, beams=16))
    if plain.isascii() and wide.isascii() and len(plain) == len(wide) == 3:
        assert likelihood(wide) >= likelihood(plain) - 1e-9


def test_a_seed_means_the_same_texts_and_another_seed_others(model):
    def sampled(seed):
        decoding = Decoding(max_new_tokens=12, top_p=1.0, seed=seed)
        return generate(model, byte_tokenizer(), PROMPTS, decoding=decoding)

    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert sampled(1) == sampled(1) != sampled(2)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's generator moved


def test_top_p_near_zero_is_greedy(model):
    decoding = Decoding(max_new_tokens=6, top_p=1e-6)
    assert generate(model, byte_tokenizer(), PROMPTS, decoding=decoding) == [
        greedy(model, p, 6) for p in PROMPTS
    ]


def test_progress_counts_prompts(model):
    seen = []
    generate(
        model,
        byte_tokenizer(),
        PROMPTS,
        decoding=Decoding(max_new_tokens=1),
        batch_size=2,
        on_batch=seen.append,
    )
    assert seen == [2, 3]


def test_a_long_prompt_is_cut_from_the_left(model):
    decoding = Decoding(max_new_tokens=4)
    kept = "y" * 60  # a context of 64 less 4 new tokens
    texts = generate(model, byte_tokenizer(), ["x" * 100 + kept, kept], decoding=decoding)
    assert texts[0] == texts[1]


def test_the_model_keeps_its_mode():
    model = gpt2().train()
    generate(model, byte_tokenizer(), ["a"], decoding=Decoding(max_new_tokens=1))
    assert model.training


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"beams": 0}, "beams must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"top_p": 1.1}, "top_p must be"),
        ({"top_p": 0.5, "beams": 2}, "exclude each other"),
        ({"temperature": 0.5}, "does nothing without top_p"),
        ({"top_p": 0.5, "temperature": 0.0}, "temperature must be"),
    ],
)
def test_a_decoding_that_would_be_ignored_or_is_out_of_range_is_refused(settings, match):
    with pytest.raises(ConfigError, match=match) as caught:
        Decoding(**settings)
    assert caught.value.code == "text-decoding"


def test_a_prompt_without_tokens_is_refused(model):
    with pytest.raises(ConfigError) as caught:
        generate(model, byte_tokenizer(), ["a", ""], decoding=Decoding(max_new_tokens=1))
    assert caught.value.code == "text-prompt"


def test_no_room_for_a_prompt_is_refused(model):
    with pytest.raises(ConfigError, match="leaves no room"):
        generate(model, byte_tokenizer(), ["a"], decoding=Decoding(max_new_tokens=64))
