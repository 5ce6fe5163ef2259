"""Checkpoints: nothing lost, nothing unpickled, nothing half written, damage noticed."""

import dataclasses
import hashlib
import json
import math
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from reticent.errors import CheckpointError
from reticent.train import _checkpoint as checkpoint_module
from reticent.train._checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from tests.train.joint import make_model, weights_of
from tests.train.test_step import OPTIMIZERS


def checkpoint(step, model=None, optimizer=None):
    model = model or make_model(seed=step)
    return Checkpoint(
        step=step,
        updates=step,
        ledger_head=f"head-{step}",
        seconds=1.5,
        model=model.state_dict(),
        averages={},
        optimizer={} if optimizer is None else optimizer.state_dict(),
    )


def silent(text):
    raise AssertionError(text)


def train_a_little(model, optimizer, num_steps):
    for step in range(num_steps):
        for k, p in enumerate(model.parameters()):
            p.grad = torch.sin(torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape) + k + step)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path, name):
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    train_a_little(model, optimizer, 3)
    save_checkpoint(tmp_path, checkpoint(3, model, optimizer))

    other = make_model(seed=7)
    restored = OPTIMIZERS[name](other.parameters())
    loaded = load_checkpoint(tmp_path, say=silent)
    assert (loaded.step, loaded.updates, loaded.ledger_head, loaded.seconds) == (3, 3, "head-3", 1.5)
    other.load_state_dict(loaded.model)
    restored.load_state_dict(loaded.optimizer)
    for both in ((model, optimizer), (other, restored)):
        train_a_little(*both, 3)
    assert torch.equal(weights_of(model), weights_of(other))


def test_tied_weights_are_saved(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    save_tensors(tmp_path / "t.safetensors", model.state_dict())
    tensors, _ = load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(tensors["a.weight"], tensors["b.weight"])


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path):
    save_tensors(tmp_path / "t.safetensors", {"row": torch.arange(1000.0).reshape(100, 10)[3]})
    assert (tmp_path / "t.safetensors").stat().st_size < 1000
    assert torch.equal(load_tensors(tmp_path / "t.safetensors")[0]["row"], torch.arange(30.0, 40.0))


def test_the_last_two_are_kept_and_no_other_file(tmp_path):
    for step in (0, 10, 20, 30):
        save_checkpoint(tmp_path, checkpoint(step))
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["checkpoint-000020.safetensors", "checkpoint-000030.safetensors", "checkpoint.json"]
    assert load_checkpoint(tmp_path, say=silent).step == 30


def test_a_listed_checkpoint_is_never_written_over(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(10))
    save_checkpoint(tmp_path, checkpoint(20))
    with monkeypatch.context() as patch:  # a crash once the file is whole, before it is listed
        patch.setattr(checkpoint_module, "_list", lambda *_: None)
        save_checkpoint(tmp_path, dataclasses.replace(checkpoint(20), updates=19))
    told = []
    assert load_checkpoint(tmp_path, say=told.append).updates == checkpoint(20).updates and not told
    for updates in (18, 17, 16):
        save_checkpoint(tmp_path, dataclasses.replace(checkpoint(20), updates=updates))
        assert load_checkpoint(tmp_path, say=told.append).updates == updates
    assert len(list(tmp_path.iterdir())) == 3 and not told


def test_a_run_without_a_ledger_that_went_back_from_a_damaged_file_keeps_the_next(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, dataclasses.replace(checkpoint(step), ledger_head=None))
    (tmp_path / "checkpoint-000020.safetensors").write_bytes(b"torn")
    told = []
    assert load_checkpoint(tmp_path, say=told.append).step == 10 and told
    save_checkpoint(tmp_path, dataclasses.replace(checkpoint(20), ledger_head=None))
    assert load_checkpoint(tmp_path, say=silent).step == 20


def test_a_run_that_never_wrote_one_has_none(tmp_path):
    assert load_checkpoint(tmp_path, say=silent) is None


@pytest.mark.parametrize(
    "wrong", [{"step": True}, {"updates": 1.0}, {"ledger_head": [1]}, {"seconds": "x"}, {"seconds": math.nan}]
)
def test_a_header_whose_numbers_are_none_is_damage_even_with_a_right_digest(tmp_path, wrong):
    save_checkpoint(tmp_path, checkpoint(1))
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    path = tmp_path / index["checkpoints"][0]["file"]
    tensors, header = load_tensors(path)
    save_file(tensors, path, metadata={"reticent": json.dumps({**header, **wrong})})
    index["checkpoints"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path, say=silent)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


def remove(path):
    path.unlink()


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def swap_for_a_pickle(path):
    path.write_bytes(pickle.dumps(Bomb()))


DAMAGES = [truncate, flip_a_bit, remove, swap_for_a_pickle]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_is_told(tmp_path, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (10, 20):
        save_checkpoint(tmp_path, checkpoint(step))
    damage(tmp_path / "checkpoint-000020.safetensors")
    told = []
    assert load_checkpoint(tmp_path, say=told.append).step == 10
    assert len(told) == 1
    assert "checkpoint-000020.safetensors" in told[0]
    assert "stay spent" in told[0]
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_no_whole_checkpoint_left_loading_fails(tmp_path, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (10, 20):
        save_checkpoint(tmp_path, checkpoint(step))
        damage(tmp_path / f"checkpoint-{step:06d}.safetensors")
    with pytest.raises(CheckpointError, match=r"No checkpoint of .*\[checkpoint-damaged\]"):
        load_checkpoint(tmp_path, say=silent)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_with_a_matching_checksum_is_not_run_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path, checkpoint(10))
    path = tmp_path / "checkpoint-000010.safetensors"
    swap_for_a_pickle(path)
    from reticent.train._checkpoint import _sha256

    index = json.loads((tmp_path / "checkpoint.json").read_text())
    index["checkpoints"][0]["sha256"] = _sha256(path)
    (tmp_path / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"cannot be read.*\[checkpoint-damaged\]"):
        load_checkpoint(tmp_path, say=silent)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1, "checkpoints": []}',
        '{"format": 2, "checkpoints": [{"file": "checkpoint-000010.safetensors", "sha256": "0"}]}',
        '{"format": 1, "checkpoints": [{"file": "../checkpoint-000010.safetensors", "sha256": "0"}]}',
    ],
)
def test_a_damaged_list_of_checkpoints_is_an_error(tmp_path, text):
    save_checkpoint(tmp_path, checkpoint(10))
    (tmp_path / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"\[checkpoint-index\]"):
        load_checkpoint(tmp_path, say=silent)


def test_a_missing_list_is_an_error_while_checkpoints_are_there(tmp_path):
    save_checkpoint(tmp_path, checkpoint(10))
    (tmp_path / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"\[checkpoint-index\]"):
        load_checkpoint(tmp_path, say=silent)


def test_an_optimizer_state_that_is_no_data_is_refused(tmp_path):
    odd = Checkpoint(
        step=1, updates=1, ledger_head=None, seconds=0.0, model={}, averages={}, optimizer={"state": object()}
    )
    with pytest.raises(CheckpointError, match=r"'optimizer/state'.*\[optimizer-state\]"):
        save_checkpoint(tmp_path, odd)
    assert list(tmp_path.iterdir()) == []
