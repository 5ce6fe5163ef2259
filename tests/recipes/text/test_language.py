"""The recipe text-generate: exact clipping in the real configuration, a whole run on a file, bad input."""

import json
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import reticent as rt
from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.cli._run_screen import _rows as screen_rows
from reticent.cli.generate import command as generate_command
from reticent.errors import ReticentError
from reticent.recipes import describe, go_on, request, run
from reticent.recipes._config import make_config
from reticent.recipes.text import _score
from reticent.recipes.text._objectives import body_and_head
from reticent.recipes.text._score import IGNORED
from reticent.recipes.text._suggest import suggest_generation
from reticent.recipes.text.language import (
    TEXT_GENERATE,
    TextGenerateConfig,
    adapted,
    mean_loss,
    num_units,
    token_rows,
)
from reticent.report import write_report
from reticent.rules import _head
from tests.recipes.text.encoders import word_tokenizer
from tests.recipes.text.models import byte_tokenizer, gpt2, llama
from tests.support import oracle

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

PAIRS = [("", "a plain text"), ("name : A", "A it is."), ("", ""), ("x" * 60, "long source"), ("s", "y" * 60)]


@pytest.fixture(params=[pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def folder(request, tmp_path):
    """A tiny model's folder."""
    model = {"gpt2": gpt2, "llama": llama}[request.param]()
    model.save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def rows(tmp_path):
    """A file of forty short texts, with sources."""
    path = tmp_path / "rows.jsonl"
    lines = [{"text": f"mail {k}", "source": f"k : {k}", "target": f"It is {k}."} for k in range(40)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def asked(folder, rows, *more):
    settings = [
        f"model={folder}", f"data={rows}", "num_steps=2", "expected_batch_size=8", "max_length=24",
        "epsilon=8", *more,
    ]  # fmt: skip
    return request("text-generate", settings)


def test_only_the_target_is_learned_and_both_are_cut_to_fit():
    ids, mask, labels = token_rows(byte_tokenizer(), PAIRS, 32, "=>")
    assert ids.shape == mask.shape == labels.shape == (5, 32)
    learned = [bytes(i - 3 for i in row[row != IGNORED].tolist() if i > 2).decode() for row in labels]
    assert learned == ["a plain text", "A it is.", "", "long source", "y" * 32]
    read = bytes(i - 3 for i in ids[3].tolist() if i > 2).decode()
    assert read == "x" * 18 + "=>" + "long source"  # the source lost its beginning
    assert [int(row[row != IGNORED][-1]) for row in labels[:4]] == [1, 1, 1, 1]  # the end is learned too


def test_a_token_before_every_text_stands_once_before_source_and_target():
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "[CLS]", "eos_token": "[SEP]"})
    pairs = [("film", "it was good"), ("", "it was good")]
    ids, mask, labels = token_rows(tokenizer, pairs, 12, " ")
    with_source, alone = (
        tokenizer.convert_ids_to_tokens(row[m.bool()]) for row, m in zip(ids, mask, strict=True)
    )
    assert with_source == ["[CLS]", "film", "it", "was", "good", "[SEP]"]
    assert alone == ["[CLS]", "it", "was", "good", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(labels[0][labels[0] != IGNORED]) == with_source[2:]


def test_how_long_a_private_text_is_is_not_logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for follows in ("", "source"):
        tokenizer = byte_tokenizer(model_max_length=8)
        token_rows(tokenizer, [(follows, "a text of more than eight bytes")], 8, " ")
    assert not caplog.records
    byte_tokenizer(model_max_length=8)("a text of more than eight bytes")
    assert "longer than" in caplog.text, "transformers says so by itself"


def openai_gpt():
    """The first GPT, of two small layers over bytes."""
    torch.manual_seed(0)
    settings = OpenAIGPTConfig(vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=2, pad_token_id=0)
    return OpenAIGPTLMHeadModel(settings).eval()


WAYS = {
    "lora": {},
    "last layers": {"adaptation": "lora", "lora_layers": 1},
    "ia3": {"adaptation": "ia3"},
    "full": {"adaptation": "full"},
    "static embeddings": {"adaptation": "full", "freeze_embeddings": True},
    "frozen layers": {"adaptation": "full", "freeze_layers": 1},
    "bias": {"adaptation": "bias"},
    "attention": {"adaptation": "attention"},
}
LAST_LAYER = {"last layer": {"adaptation": "last-layer"}}  # of a head that is not tied, as Llama's here
PAIRED = [(build, way) for way in WAYS for build in (gpt2, llama) if (build, way) != (llama, "bias")]


EXACT = [*PAIRED, (llama, "last layer"), (openai_gpt, "full"), (openai_gpt, "lora")]


@pytest.mark.parametrize(("build", "way"), EXACT)
def test_clipped_sums_are_those_of_one_example_at_a_time(build, way):
    model = adapted(build().double(), make_config(TextGenerateConfig, {**WAYS, **LAST_LAYER}[way])).double()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    if "layers" in way:
        assert trained and not any(part in name for name in trained for part in ("layers.0.", "h.0."))
    if way in ("static embeddings", "frozen layers"):
        assert not any("wte" in name or "embed_tokens" in name for name in trained)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "ia3" in name:
                p.normal_(std=0.1)
    batch = token_rows(byte_tokenizer(), PAIRS, 32, "=>")

    def losses(rows):
        return mean_loss(model, rows)

    norm = sorted(
        float(oracle.norm_of(oracle.unit_gradient(model, losses, oracle.take_rows(batch, slice(b, b + 1)))))
        for b in range(5)
    )[2]  # fmt: skip  (the median: some rows are clipped, some are not)
    wanted, _ = oracle.loop_clipped_sum(model, losses, batch, norm)
    found = rt.clipped_sum(model, losses, batch, max_norm=norm)
    assert oracle.distance(found.total, wanted) < 1e-9 * norm


class RowsOfLogits(TorchDispatchMode):
    """The most rows of logits that any operation returned."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.most = classes, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.dim() and t.shape[-1] == self.classes:
                self.most = max(self.most, t[..., 0].numel())
        return out


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
@pytest.mark.parametrize("method", ("book-keeping", "ghost"))
@pytest.mark.parametrize(("build", "way"), EXACT)
def test_logits_in_parts_give_the_same_sums_and_are_never_whole(monkeypatch, build, way, method):
    model = adapted(build().double(), make_config(TextGenerateConfig, {**WAYS, **LAST_LAYER}[way])).double()
    batch = token_rows(byte_tokenizer(), PAIRS, 32, "=>")
    classes = model.config.vocab_size
    wanted = rt.clipped_sum(model, lambda rows: mean_loss(model, rows), batch, max_norm=1.0)
    for module in (_head, _score):
        monkeypatch.setattr(module, "_ENTRIES" if module is _head else "_LOGITS_AT_ONCE", 8 * classes)
    losses = TEXT_GENERATE.loss_per_example(make_config(TextGenerateConfig, {"low_memory": True}))
    engine = rt.clip.ClipEngine(model, max_norm=1.0, method=method)
    with RowsOfLogits(classes) as seen:
        found = engine.clipped_sum(lambda rows: losses(model, rows), batch)
    assert oracle.distance(found.total, wanted.total) < 1e-9
    assert 8 <= seen.most <= 32  # the weight, or a row at most, of five rows' 155


def test_scores_form_logits_in_parts_too(monkeypatch):
    model, batch = gpt2().eval(), token_rows(byte_tokenizer(), PAIRS, 32, "=>")
    wanted = mean_loss(model, batch)
    monkeypatch.setattr(_score, "_LOGITS_AT_ONCE", 8 * model.config.vocab_size)
    scores = TEXT_GENERATE.scores(make_config(TextGenerateConfig, {"low_memory": True}))
    with torch.no_grad(), RowsOfLogits(model.config.vocab_size) as seen:
        torch.testing.assert_close(scores(model, batch)["loss"], wanted.detach(), rtol=1e-5, atol=1e-6)
    assert 8 <= seen.most <= 32  # the weight, or a part


def _small(kind, config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
    return kind(
        config(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    ).eval()


@pytest.mark.parametrize(
    "build",
    (
        gpt2,
        llama,
        openai_gpt,
        lambda: _small(MistralForCausalLM, MistralConfig),
        lambda: _small(Qwen2ForCausalLM, Qwen2Config),
    ),
    ids=("gpt2", "llama", "openai-gpt", "mistral", "qwen2"),
)
def test_every_known_kind_gives_its_head_what_its_body_returns(build):
    model, batch = build().eval(), token_rows(byte_tokenizer(), PAIRS, 32, "=>")
    assert body_and_head(model) is not None
    with torch.no_grad():
        torch.testing.assert_close(
            mean_loss(model, batch, in_parts=True), mean_loss(model, batch), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("why", ("another kind", "a head with a hook", "a head with an adapter"))
def test_where_logits_cannot_be_formed_in_parts_they_are_whole(monkeypatch, why):
    model, batch = gpt2(), token_rows(byte_tokenizer(), PAIRS, 32, "=>")
    if why == "another kind":
        monkeypatch.setattr("reticent.recipes.text._objectives._LINEAR_HEADS", frozenset())
    elif why == "a head with a hook":
        model.lm_head.register_forward_hook(lambda module, args, logits: 2 * logits)
    else:
        model.lm_head = torch.nn.Sequential(model.lm_head)
    assert body_and_head(model) is None
    assert torch.equal(mean_loss(model, batch, in_parts=True), mean_loss(model, batch))


def test_an_older_torch_forms_whole_logits_where_the_head_is_trained(monkeypatch):
    model, batch = gpt2(), token_rows(byte_tokenizer(), PAIRS, 32, "=>")
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    assert torch.equal(mean_loss(model, batch, in_parts=True), mean_loss(model, batch))


def test_what_has_nothing_to_train_is_refused():
    with pytest.raises(ReticentError, match="nothing to train with adaptation = bias"):
        adapted(llama(), make_config(TextGenerateConfig, {"adaptation": "bias"}))
    with pytest.raises(ReticentError, match="tied to its embeddings"):
        adapted(gpt2(), make_config(TextGenerateConfig, {"adaptation": "last-layer"}))


def test_a_row_without_a_target_counts_as_zero():
    model = gpt2().double()
    rows = token_rows(byte_tokenizer(), [("only a source", "x"), ("", "ok")], 32, "")
    rows[2][0] = IGNORED
    loss = mean_loss(model, rows)
    assert float(loss[0].detach()) == 0.0 < float(loss[1].detach())
    loss[0].backward()
    assert not any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


def test_a_private_run_ends_with_model_card_and_texts(folder, rows, tmp_path):
    out = tmp_path / "run"
    request_ = asked(folder, rows, "source_column=source", "separator= => ")
    result = run(request_, out=out)
    book = read_ledger(out / "ledger.jsonl")
    stated = epsilon(tuple(book.segments()), delta=book.delta, relation=book.relation).epsilon
    assert result["private"] and result["epsilon"] == pytest.approx(stated) and stated <= 8
    assert book.num_steps == 2
    assert result["kept"] == {"model": "model", "adapter": "adapter"}
    assert [*result["adapter_sha256"]] == ["adapter/adapter_model.safetensors"]
    assert [*result["weights_sha256"]] == ["model/model.safetensors"]
    assert result["test_perplexity"] > 0 and result["pretrained_perplexity"] > 0
    assert write_report(out).cards == (out / "model" / "README.md", out / "adapter" / "README.md")
    assert "| δ | 1e-05 |" in (out / "model" / "README.md").read_text()
    assert str(tmp_path) not in (out / "model" / "README.md").read_text()
    told = CliRunner().invoke(
        generate_command,
        [str(out), "--data", str(rows), "--max-new-tokens", "4", "--metric", "rouge_l", "--json"],
        catch_exceptions=False,
    )
    assert json.loads(told.stdout.splitlines()[-1])["num_texts"] == 40


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_run_that_diverged_ends_all_the_same(folder, rows, tmp_path):
    result = run(asked(folder, rows, "adaptation=last-layer", "lr=3000"), out=tmp_path / "run")
    assert result["private"] and result["test_perplexity"] is None
    assert json.loads((tmp_path / "run" / "result.json").read_text())["weights_sha256"]
    assert go_on(tmp_path / "run")["epsilon"] == result["epsilon"]


def test_without_privacy_the_same_code_says_that_there_is_none(folder, rows, tmp_path):
    result = run(asked(folder, rows, "epsilon=inf", "adaptation=full"), out=tmp_path / "run")
    assert not result["private"] and result["epsilon"] is None
    assert result["test_perplexity"] < result["pretrained_perplexity"]
    card = (write_report(tmp_path / "run").cards[0]).read_text()
    assert "no privacy guarantee" in card


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_openai_gpt_is_trained_privately_from_its_weights_or_from_random_ones(rows, tmp_path, init):
    theirs = openai_gpt()
    theirs.save_pretrained(tmp_path / "gpt")
    byte_tokenizer().save_pretrained(tmp_path / "gpt")
    asked_ = asked(tmp_path / "gpt", rows, f"init={init}", "adaptation=full", "lr=1e-6")
    result = run(asked_, out=tmp_path / "run")
    assert result["private"] and 0 < result["epsilon"] <= 8
    assert ("pretrained_perplexity" in result) == (init == "pretrained")
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    same = torch.allclose(kept.lm_head.weight, theirs.lm_head.weight, atol=1e-3)
    assert same == (init == "pretrained")


def test_what_would_run_is_shown_without_reading_texts_by_name(monkeypatch):
    monkeypatch.setattr("reticent.recipes.text._splits.load", None)
    shown = describe(request("text-generate", ["data=brown", "epsilon=8"]))
    assert shown["epsilon"] <= 8 and shown["config"]["max_norm"] == 0.1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["text_column=body"], "no column 'body'"),
        (["source_column=body"], "no column 'body'"),
        (["max_length=65"], "reads 64 tokens"),
        (["model=nowhere"], "Known: minilm"),
        (["test_fraction=0.001"], "too few"),
        (["data=none.jsonl"], "no file or folder"),
        (["target_column=x"], "target_column would be ignored"),
        (["adaptation=full", "lora_rank=2"], "lora_rank would be ignored"),
        (["init=random"], "set adaptation = full"),
        (["init=random", "adaptation=full", "freeze_layers=1"], "leave freeze_embeddings and"),
        (["adaptation=bias", "freeze_embeddings=true"], "freeze_embeddings would be ignored"),
        (["only_class=learned"], "only_class would be ignored"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_spent(folder, rows, tmp_path, settings, match):
    with pytest.raises(ReticentError, match=match):
        run(asked(folder, rows, *settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_rows_without_a_token_are_refused_before_anything_is_spent(folder, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n".join(json.dumps({"text": ""}) for _ in range(40)))
    with pytest.raises(ReticentError, match="has a token to predict") as caught:
        run(asked(folder, empty), out=tmp_path / "run")
    assert caught.value.code == "text-no-tokens" and not (tmp_path / "run").exists()


def test_steps_and_batch_follow_from_the_rows_and_are_explained(folder, rows, tmp_path):
    few = ["max_length=24", "epsilon=8", f"model={folder}"]
    small = request("text-generate", [*few, f"data={rows}"])
    assert small.config.expected_batch_size <= 36 and small.config.num_steps == 60
    assert small.config.optimizer == "adam" and small.config.weight_decay is None
    why = describe(small)["chosen"]
    assert "N = 36" in why["num_steps"] and {"expected_batch_size", "delta", "lr", "max_norm"} <= why.keys()
    mine = request("text-generate", [*few, f"data={rows}", "num_steps=7", "expected_batch_size=5"])
    assert (mine.config.num_steps, mine.config.expected_batch_size) == (7, 5)
    assert not {"num_steps", "expected_batch_size"} & describe(mine)["chosen"].keys()
    plain = request("text-generate", [*few[:1], f"model={folder}", f"data={rows}", "epsilon=inf"]).config
    same = ("num_steps", "expected_batch_size", "delta", "optimizer")
    assert all(getattr(plain, name) == getattr(small.config, name) for name in same)
    published = {42_061: (411, 1024), 93_187: (1366, 1024)}
    for size, (steps, batch) in published.items():
        found = suggest_generation(num_examples=size, epsilon=3.0, delta=1e-5).values
        assert steps / 2 < found["num_steps"] < steps * 2
        assert batch / 2 < found["expected_batch_size"] < batch * 2
    e2e = request("e2e-gpt2", []).config
    assert (e2e.num_steps, e2e.expected_batch_size, e2e.delta) == (411, 1024, 8e-6)


def test_scores_of_rows_held_out_of_the_private_file_are_marked_in_the_result(rows, tmp_path):
    llama().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    result = run(asked(tmp_path / "tiny", rows, "adaptation=last-layer"), out=tmp_path / "run")
    assert result["scored"] == "held-out rows of the file, NOT private"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["scored"] == result["scored"]
    assert ("scores are of", result["scored"]) in screen_rows({**result, "report": None})


def test_another_file_is_scored_in_full_and_nothing_is_held_out(rows, tmp_path):
    llama().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    other = tmp_path / "other.jsonl"
    lines = [{"text": f"letter {k}", "source": "s", "target": "abc"} for k in range(7)]
    other.write_text("\n".join(map(json.dumps, lines)))
    few = ["adaptation=last-layer", f"test_data={other}", "source_column=source"]
    found = asked(tmp_path / "tiny", rows, *few)
    assert not TEXT_GENERATE.holds_out(found.config)
    result = run(found, out=tmp_path / "run")
    assert result["private"] and "scored" not in result
    assert result["test_tokens"] == 7 * 4  # three letters and the end token
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").public["num_examples"] == 40
    assert go_on(tmp_path / "run")["epsilon"] == result["epsilon"]
    assert num_units(found.config) == 40
    other.write_text(json.dumps(lines[0]))
    assert len(TEXT_GENERATE.fetch(found.config, report=print, progress=False).test) == 1, "read anew"


def test_with_users_the_rows_of_another_file_are_anybodys(rows, tmp_path):
    lines = [{"text": f"mail {k}", "who": k % 8} for k in range(40)]
    rows.write_text("\n".join(map(json.dumps, lines)))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "a letter"}))
    config = asked(tmp_path, rows, f"test_data={other}", "user_column=who").config
    found = TEXT_GENERATE.fetch(config, report=print, progress=False)
    assert found.num_units == 8 and len(found.train) == 40 and found.test == (("", "a letter"),)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["test_data={rows}"], "these are the private rows"),
        (["test_data={rows}.b", "test_fraction=0.2"], "test_fraction would be ignored"),
        (
            ["test_data={rows}.b"],
            "there is no file|no such file|No such file|not there|missing|does not exist",
        ),
        (["data=brown", "test_data={rows}"], "test_data would be ignored"),
    ],
)
def test_a_file_to_score_on_that_does_not_fit_is_refused(rows, tmp_path, settings, match):
    given = [setting.format(rows=rows) for setting in settings]
    with pytest.raises(ReticentError, match=match):
        run(asked(tmp_path, rows, *given), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", ["lora", "ia3", "attention"])
def test_a_head_that_is_not_tied_stays_as_it_is_in_what_the_page_of_the_paper_names(way):
    model = adapted(llama(), make_config(TextGenerateConfig, {"adaptation": way}))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lm_head" in name)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_frozen_embeddings_are_the_head_where_both_are_one(build):
    model = adapted(
        build(), make_config(TextGenerateConfig, {"adaptation": "full", "freeze_embeddings": True})
    )
    assert model.lm_head.weight.requires_grad == (build is llama)


def test_an_encoder_is_refused(folder, rows, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReticentError, match="is no decoder"):
        run(asked(folder, rows), out=tmp_path / "run")


def test_the_recipe_is_known_by_name():
    assert request("text-generate", ["data=brown"]).recipe is TEXT_GENERATE
    assert math.isfinite(request("text-generate", ["data=brown"]).config.epsilon)
