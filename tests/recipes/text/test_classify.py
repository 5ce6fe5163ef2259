"""The recipe `text-classify` on tiny models: exact per-example gradients, whole runs on own files."""

import json
import math

import pytest
import torch

import reticent as rt
from reticent.account import epsilon
from reticent.account.ledger import read_ledger
from reticent.errors import ConfigError, ReticentError
from reticent.recipes import describe, request, run, run_or_go_on, with_measured_norm
from reticent.recipes._parts import build_model
from reticent.recipes.text._adapt import adapt
from reticent.recipes.text._fit import check_parts, read_lacking
from reticent.recipes.text._objectives import (
    _WORD_HEADS,
    _word_logits,
    class_losses,
    head_answers,
    number_losses,
    word_answers,
)
from reticent.recipes.text.classify import TEXT_CLASSIFY, TextClassifyConfig
from tests.recipes.text.encoders import SIZES, encoder_settings, save_masked, word_tokenizer
from tests.recipes.text.models import byte_tokenizer, gpt2, llama
from tests.support.case import Problem
from tests.support.judge import assert_close, median_norm
from tests.support.oracle import loop_clipped_sum

hf = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def openai_gpt(head):
    settings = hf.OpenAIGPTConfig(
        vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=4, pad_token_id=0, num_labels=3
    )
    return head.from_config(settings)


def model_of(kind, head):
    torch.manual_seed(0)
    if kind == "OpenAIGPT":
        return openai_gpt(head)
    if kind == "Llama":
        return head.from_config(
            hf.LlamaConfig(
                vocab_size=60, num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0,
                num_labels=3, tie_word_embeddings=True, **SIZES,
            )
        )  # fmt: skip
    return head.from_config(encoder_settings(kind, positions=18, num_labels=3))


def rows(y=(0, 1, 2, 1)):
    torch.manual_seed(1)
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 2])[:, None]).long()
    ids = torch.randint(5, 60, (4, 9)) * mask
    return ids, mask, torch.zeros_like(ids), torch.tensor([5, 3, 0, 1]), torch.tensor(y)


def assert_exact(model, losses, batch=None):
    model = model.eval().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    batch = rows() if batch is None else batch
    problem = Problem(model=model, losses=lambda part: losses(model, part), batch=batch)
    norm = median_norm(problem)
    total, norms = loop_clipped_sum(model, problem.losses, batch, norm)
    got = rt.clipped_sum(model, problem.losses, batch, max_norm=norm)
    assert_close(got, total, norms, max_norm=norm, tolerance=1e-9)


WAYS = ["full", "lora", "ia3", "bias", "attention", "last-layer"]


@pytest.mark.parametrize(
    ("kind", "adaptation"),
    [*(("Bert", way) for way in WAYS), ("MPNet", "full"), ("Llama", "lora"), ("OpenAIGPT", "full")],
)
def test_a_new_head_is_clipped_exactly(kind: str, adaptation: str) -> None:
    model = model_of(kind, hf.AutoModelForSequenceClassification)
    model = adapt(model, adaptation=adaptation, new_head=True)
    assert_exact(model, class_losses(head_answers(with_types=kind == "Bert")))


WITH_ADAPTERS = [
    *((kind, way) for kind in ("Bert", "DebertaV2", "Roberta") for way in ("lora", "ia3")),
    *((kind, "lora") for kind in ("Albert", "DistilBert", "MPNet")),
]
PLAIN = ["bias", "attention", "last-layer"]


@pytest.mark.parametrize(("kind", "adaptation"), [*WITH_ADAPTERS, *(("Bert", way) for way in PLAIN)])
def test_all_of_a_new_head_is_trained_whatever_the_adaptation_and_exactly(tmp_path, kind, adaptation) -> None:
    """Also what stands between the base and the classifier, and a pooler that the weights of masks lack."""
    model, lacking = read_lacking(
        str(save_masked(tmp_path, kind)), objective="head", max_length=9, num_labels=3
    )
    model = adapt(model, adaptation=adaptation, new_head=True, random=lacking)
    parts = {name.rpartition(".")[0] for name in lacking}
    assert any("classifier" in part for part in parts)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert not [
        name
        for name in frozen
        if "original_module" not in name and any(f".{part}." in f".{name}" for part in parts)
    ]
    assert not any("lora" in name or "ia3" in name for name, _ in outside_of(model))
    assert_exact(model, class_losses(head_answers(with_types=False)))


def outside_of(model):
    """Parameters outside the base model, by name."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    inside = {id(p) for p in whole.base_model.parameters()}
    return [(name, p) for name, p in whole.named_parameters() if id(p) not in inside]


def test_a_pretrained_pooler_is_adapted_and_not_trained_whole() -> None:
    model = adapt(model_of("Bert", hf.AutoModelForSequenceClassification), adaptation="lora", new_head=True)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "pooler" in name]
    assert len(trained) == 2 and all("lora" in name for name in trained)


def test_what_predicts_words_gets_no_adapters() -> None:
    model = adapt(model_of("Bert", hf.AutoModelForMaskedLM), adaptation="lora", new_head=False)
    assert not any("lora" in name for name, _ in outside_of(model))


def test_a_head_without_a_module_of_its_own_takes_no_adapters() -> None:
    model = model_of("Bert", hf.AutoModelForSequenceClassification)
    model.temperature = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ConfigError, match="in no module of their own") as caught:
        adapt(model, adaptation="lora", new_head=True)
    assert caught.value.code == "text-model"


@pytest.mark.parametrize("error", [TypeError("no such layers"), ValueError("no such layers")])
def test_what_peft_says_is_told_with_the_way_out(monkeypatch, error) -> None:
    def fails(*_):
        raise error

    monkeypatch.setattr("peft.get_peft_model", fails)
    model = model_of("Bert", hf.AutoModelForSequenceClassification)
    with pytest.raises(ConfigError, match=r"no lora adapters on BertFor.*no such layers. Take lora or full"):
        adapt(model, adaptation="lora", new_head=True)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Bert", {"adaptation": "full"}),
        ("Bert", {"adaptation": "full", "freeze_embeddings": True}),
        ("Bert", {"adaptation": "full", "freeze_layers": 1}),
        ("Bert", {"adaptation": "lora"}),
        ("Bert", {"adaptation": "last-layer"}),
        ("MPNet", {"adaptation": "bias"}),
        ("Roberta", {"adaptation": "attention"}),
        ("Albert", {"adaptation": "full"}),
        ("DistilBert", {"adaptation": "full"}),
    ],
)
def test_masked_words_are_clipped_exactly(kind: str, settings: dict) -> None:
    model = adapt(model_of(kind, hf.AutoModelForMaskedLM), new_head=False, **settings)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if "freeze_embeddings" in settings:  # nor the output layer, which is the same tensor
        assert not any("word_embeddings" in name or "decoder.weight" in name for name in trained)
    if "freeze_layers" in settings:
        assert not any(part in name for name in trained for part in ("embeddings", "layer.0."))
    assert_exact(model, class_losses(word_answers((7, 9, 11))))


@pytest.mark.parametrize("adaptation", ["full", "lora"])
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "OpenAIGPT"])
def test_next_words_with_a_tied_head_are_clipped_exactly(kind: str, adaptation: str) -> None:
    model = gpt2() if kind == "GPT2" else model_of(kind, hf.AutoModelForCausalLM)
    model = adapt(model, adaptation=adaptation, new_head=False)
    assert_exact(model, class_losses(word_answers((7, 9, 11))))


def test_numbers_are_clipped_exactly() -> None:
    model = hf.AutoModelForSequenceClassification.from_config(encoder_settings(num_labels=1))
    y = torch.tensor([0.5, 2.0, 4.5, 3.0], dtype=torch.float64)
    assert_exact(model, number_losses(head_answers(with_types=False)), (*rows()[:4], y))


@pytest.mark.parametrize("kind", ["Albert", "Bert", "MPNet", "Roberta", "Llama", "OpenAIGPT", "GPT2"])
def test_scoring_one_position_gives_the_models_own_logits(kind: str) -> None:
    causal = kind in ("Llama", "OpenAIGPT", "GPT2")
    model = gpt2() if kind == "GPT2" else model_of(
        kind, hf.AutoModelForCausalLM if causal else hf.AutoModelForMaskedLM
    )  # fmt: skip
    model = model.eval()
    assert type(model).__name__ in _WORD_HEADS
    ids, mask, _, at, _ = rows()
    own = model(input_ids=ids, attention_mask=mask).logits[torch.arange(4), at]
    torch.testing.assert_close(_word_logits(model, ids, mask, at), own)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="tied to its embeddings"):
        adapt(gpt2(), adaptation="last-layer", new_head=False)
    with pytest.raises(ConfigError, match="nothing to train with adaptation = bias"):
        adapt(llama(), adaptation="bias", new_head=False)
    with pytest.raises(ConfigError, match="has 2 blocks"):
        adapt(gpt2(), adaptation="full", new_head=False, freeze_layers=2)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["lora_rank=4"], "lora_rank would be ignored"),
        (["template=sst-2"], "template would be ignored"),
        (["objective=mask", "demonstrations=2"], "other people's rows"),
        (["adaptation=prefix"], "a prefix cannot be merged"),
        (["adaptation=dora"], "'dora' is not offered here; full, lora"),
        (["objective=regression"], "learns numbers"),
        (["label_column=y"], "label_column would be ignored"),
        (["data=rotten-tomatos"], "none of rotten-tomatoes"),
        (["init=random", "adaptation=lora"], "init = random trains everything"),
        (["init=random", "freeze_layers=2"], "init = random trains everything"),
        (["measure_norm=true", "max_norm=1"], "exclude each other"),
        (["freeze_embeddings=true", "adaptation=lora"], "freeze_embeddings would be ignored"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, told) -> None:
    with pytest.raises(ConfigError, match=told):
        request("text-classify", settings)


def test_labels_of_a_file_are_named_not_read(tmp_path) -> None:
    (tmp_path / "mine.csv").write_text("text,label\na,b\n")
    with pytest.raises(ConfigError, match="labels is missing"):
        request("text-classify", [f"data={tmp_path / 'mine.csv'}"])


def test_the_plan_is_told_without_data_with_what_was_chosen_and_why() -> None:
    told = TEXT_CLASSIFY.describe(request("text-classify", ["epsilon=8", "lr=1e-3"]))
    assert told["num_steps"] == 120 and 7.5 < told["epsilon"] <= 8
    assert "N = 7,464" in told["chosen"]["num_steps"] and "lr" not in told["chosen"]


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ([], True),
        (["freeze_embeddings=false"], False),
        (["adaptation=lora"], False),
        (["freeze_layers=1"], False),
        (["init=random"], False),
        (["model=smollm2", "objective=prompt"], False),
    ],
)
def test_embeddings_stay_where_a_new_head_is_trained_in_full(settings, frozen) -> None:
    asked = request("text-classify", settings)
    assert asked.config.freeze_embeddings is frozen
    told = TEXT_CLASSIFY.describe(asked)
    assert told["max_norm"] is None  # a run measures it
    chosen = told["chosen"]
    assert ("freeze_embeddings" in chosen) is frozen


@pytest.mark.parametrize(
    ("settings", "rate", "told"),
    [
        ([], 1.5e-3, "minilm's, measured"),
        (["adaptation=attention"], 5e-4, "as published"),
        (["model=mpnet"], 5e-4, "as published"),
        (["epsilon=inf"], 1e-4, "a fifth of the published"),
        (["adaptation=lora"], 4e-3, "minilm's, measured"),
        (["adaptation=lora", "epsilon=inf"], 8e-4, "minilm's, falling"),
    ],
)
def test_rates_are_the_published_ones_or_measured_and_the_twin_has_its_own(settings, rate, told) -> None:
    asked = request("text-classify", settings)
    assert asked.config.lr == pytest.approx(rate)
    assert told in TEXT_CLASSIFY.describe(asked)["chosen"]["lr"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_length": 30}, "reads 22 tokens"),
        ({"pad": None}, "has no pad token"),
        ({"objective": "mask"}, "fills no masks"),
        ({"objective": "prompt"}, "predicts no next words"),
        ({"config": "{}"}, "configuration of .* cannot be read|tokenizer of .* cannot be read"),
        ({"weights": b"no weights"}, "weights of .* cannot be read"),
        ({"config": None}, "neither a folder with a config.json"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path, change, told) -> None:
    settings = encoder_settings("MPNet", vocab_size=300, positions=24)
    hf.MPNetForSequenceClassification(settings).save_pretrained(tmp_path)
    tokenizer = byte_tokenizer()
    if "pad" in change:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    if "config" in change:
        (tmp_path / "config.json").unlink()
        if change["config"]:
            (tmp_path / "config.json").write_text(change["config"])
    if "weights" in change:
        (tmp_path / "model.safetensors").write_bytes(change["weights"])
    config = TextClassifyConfig(
        model=str(tmp_path),
        max_length=change.get("max_length", 16),
        objective=change.get("objective", "head"),
    )
    with pytest.raises(ConfigError, match=told) as caught:
        TEXT_CLASSIFY.build(config)
    assert caught.value.code == "text-model"


def test_a_tokenizer_of_another_model_is_refused(tmp_path) -> None:
    hf.BertForMaskedLM(encoder_settings(vocab_size=30)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="do not belong together"):
        TEXT_CLASSIFY.build(TextClassifyConfig(model=str(tmp_path), max_length=16))


def test_parts_in_which_rows_meet_are_refused() -> None:
    model = hf.BertModel(encoder_settings())
    check_parts(model, "fine")
    model.encoder.norm = torch.nn.BatchNorm1d(16)
    with pytest.raises(ConfigError, match=r"batch normalisation at 'encoder.norm'"):
        check_parts(model, "mine")
    sizes = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2, "vocab_size": 30}
    with pytest.raises(ConfigError, match="to experts at"):
        check_parts(hf.MixtralModel(hf.MixtralConfig(**sizes)), "mine")


@pytest.fixture
def pairs_file(tmp_path):
    """Forty labelled pairs of texts."""
    lines = [
        {
            "one": "a good film" if k % 2 else "a bad film",
            "two": "b c",
            "y": "ja" if k % 2 else "nein",
            "z": k,
        }
        for k in range(40)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize(
    "settings",
    [
        ["objective=mask", "template=qnli", "labels=nein,ja", "label_column=y", "label_words=no,yes"],
        ["objective=regression", "label_column=z", "epsilon=inf"],
    ],
)
def test_a_file_becomes_a_private_model_that_transformers_loads(tmp_path, pairs_file, settings) -> None:
    model = save_masked(tmp_path / "tiny")
    given = [f"model={model}", f"data={pairs_file}", "text_column=one", "pair_column=two", "max_length=16"]
    asked = request("text-classify", [*given, "num_steps=2", "expected_batch_size=8", *settings])
    result = run(asked, out=tmp_path / "run")
    if math.isinf(asked.config.epsilon):
        assert result["epsilon"] is None and "test_pearson" in result
        return
    book = read_ledger(tmp_path / "run" / "ledger.jsonl")
    stated = epsilon(tuple(book.segments()), delta=book.delta, relation=book.relation).epsilon
    assert result["epsilon"] == pytest.approx(stated) and stated <= 3
    assert result["test_accuracy"] in (0, 0.25, 0.5, 0.75, 1) and result["num_steps"] == 2
    assert 0 <= result["test_f1"] <= 1
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["data"]["scored"] == "held-out rows of the file, NOT private"
    kept = hf.AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    assert kept.config.vocab_size == 60
    assert describe(asked)["config"]["labels"] == ("nein", "ja")


def test_the_clipping_norm_is_measured_on_made_up_rows_not_on_the_files(tmp_path, pairs_file) -> None:
    """Median of the norms of plain autograd; the same whatever the file holds; set, it is as set."""
    model = save_masked(tmp_path / "tiny")
    given = [
        f"model={model}", f"data={pairs_file}", "text_column=one", "label_column=y", "labels=nein,ja",
        "max_length=16", "num_steps=1", "expected_batch_size=8",
    ]  # fmt: skip
    asked = request("text-classify", given)
    built, rows = build_model(TEXT_CLASSIFY, asked.config), TEXT_CLASSIFY.random_rows(asked.config, 32)
    losses = TEXT_CLASSIFY.loss_per_example(asked.config)
    _, norms = loop_clipped_sum(built, lambda part: losses(built, part), rows, 1.0)
    assert len({f"{of(norms):.2g}" for of in (torch.min, torch.median, torch.max)}) == 3
    found = with_measured_norm(asked)
    assert found.config.max_norm == float(f"{norms.median():.2g}") != asked.config.max_norm
    result = run(asked, out=tmp_path / "run")
    assert run_or_go_on(asked, out=tmp_path / "run")["ledger_head"] == result["ledger_head"]
    texts = pairs_file.read_text()
    pairs_file.write_text(texts.replace("film", "b c b c b"))
    run(asked, out=tmp_path / "other")
    about = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "other")]
    assert [run["config"]["max_norm"] for run in about] == [found.config.max_norm] * 2
    assert about[0]["plan"]["clipping"]["max_norm"] == found.config.max_norm
    for way in (["max_norm=0.3"], ["measure_norm=false"], ["clipping=automatic"], ["epsilon=inf"]):
        other = request("text-classify", [*given, *way])
        assert with_measured_norm(other) is other


def test_pairs_with_scores_in_a_folder_of_datasets_are_learned_privately(tmp_path) -> None:
    """As STS-B comes: two sentences, a similarity from 0 to 5, a split to score on."""
    datasets = pytest.importorskip("datasets")
    pairs = [{"sentence1": "a film", "sentence2": "b c", "score": k % 26 / 5} for k in range(40)]
    made = {"train": pairs, "validation": pairs[:9]}
    parts = {name: datasets.Dataset.from_list(part) for name, part in made.items()}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "sts"))
    settings = [
        f"model={save_masked(tmp_path / 'tiny')}", f"data={tmp_path / 'sts'}", "test_split=validation",
        "text_column=sentence1", "pair_column=sentence2", "label_column=score", "objective=regression",
        "max_length=16", "num_steps=2", "expected_batch_size=8", "epsilon=8",
    ]  # fmt: skip
    result = run(request("text-classify", settings), out=tmp_path / "run")
    assert result["private"] and 0 < result["epsilon"] <= 8 and "test_pearson" in result
    assert read_ledger(tmp_path / "run" / "ledger.jsonl").public["num_examples"] == 40
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == {"name": "file"}
    kept = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert kept.config.num_labels == 1


@pytest.mark.parametrize("ending", ["tsv", "parquet"])
def test_random_weights_are_trained_on_a_file_of_either_kind(tmp_path, ending) -> None:
    texts, labels = [f"film {k}" for k in range(40)], ["bad" if k % 2 else "good" for k in range(40)]
    path = tmp_path / f"rows.{ending}"
    if ending == "tsv":
        lines = [f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True)]
        path.write_text("text\tlabel\n" + "".join(lines))
    else:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": texts, "label": labels}), path)
    settings = [
        f"model={save_masked(tmp_path / 'tiny')}", f"data={path}", "labels=bad,good", "init=random",
        "lr=1e-6", "max_length=8", "num_steps=2", "expected_batch_size=8", "epsilon=8",
    ]  # fmt: skip
    result = run(request("text-classify", settings), out=tmp_path / "run")
    assert result["private"] and 0 < result["epsilon"] <= 8
    kept, theirs = (
        hf.AutoModelForSequenceClassification.from_pretrained(folder)
        for folder in (tmp_path / "run" / "model", tmp_path / "tiny")
    )
    assert not torch.allclose(kept.bert.encoder.layer[0].output.dense.weight,
                              theirs.bert.encoder.layer[0].output.dense.weight, atol=1e-3)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["label_column=nope"], "data-column", "no column 'nope'; it has: one, two, y, z"),
        (["labels=ja,vielleicht"], "data-labels", "must be one of ja, vielleicht"),
        (["objective=mask"], "text-template", "needs a template"),
        (
            ["objective=mask", "template={text} was {mask}", "label_words=a,b"],
            "text-template",
            "has no {text_b}",
        ),
        (
            ["objective=mask", "template=qnli", "label_words=no,dunno"],
            "label-words",
            "not in the tokenizer's",
        ),
        (["objective=mask", "template=qnli", "label_words=no,terrific"], "label-words", "takes 2 tokens"),
        (["objective=mask", "template=mnli"], "label-words", "2 labels and 3 label words"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_spent(tmp_path, pairs_file, settings, code, told) -> None:
    model = save_masked(tmp_path / "tiny")
    given = [
        f"model={model}", f"data={pairs_file}", "text_column=one", "pair_column=two", "max_length=16",
        "label_column=y", "labels=nein,ja", "num_steps=2", "expected_batch_size=8",
    ]  # fmt: skip
    with pytest.raises(ReticentError, match=told) as caught:
        run(request("text-classify", [*given, *settings]), out=tmp_path / "run")
    assert caught.value.code == code
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "ledger.jsonl").exists()


def test_a_tokenizer_without_a_mask_is_refused_for_masks(tmp_path) -> None:
    hf.BertForMaskedLM(encoder_settings(vocab_size=300)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = TextClassifyConfig(model=str(tmp_path), objective="mask", max_length=16)
    with pytest.raises(ConfigError, match="has no mask token"):
        TEXT_CLASSIFY.build(config)


def test_word_tokenizer_is_what_the_tests_take_it_for() -> None:
    tokenizer = word_tokenizer()
    assert tokenizer("a film")["input_ids"] == [2, 12, 19, 3]
    assert len(tokenizer("terrific", add_special_tokens=False)["input_ids"]) == 2
