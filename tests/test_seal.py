"""Seals of checkpoints: what is found damaged, which checkpoint a run goes on from, and which ones are deleted."""

import json

import pytest

from entropy_grpo.runs import seal
from entropy_grpo.runs.folder import checkpoints
from entropy_grpo.training.checkpoints import find_checkpoint

CONTENTS = {
    "model.safetensors": b"weights " * 999,
    "optimizer.pt": b"moments " * 999,
    "rng_state_0.pth": b"random",
    "rng_state_1.pth": b"random, too",
    "run_state.safetensors": b"shared",
    "run_state_0.safetensors": b"rollout",
    "run_state_1.safetensors": b"other rollout",
    "optimizer_0/__0_0.distcp": b"shard",
    "optimizer_0/__1_0.distcp": b"other shard",
    "global_step3/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": b"deepspeed",
    "trainer_state.json": b"{}",
    "README.md": b"a card, which commands write again",
}


def save(run, step, ranks=2):
    folder = run / f"checkpoint-{step}"
    for name, content in CONTENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    parts = [seal.digests(folder, rank, ranks) for rank in range(ranks)]
    seal.write(folder, {"step": step, "num_processes": ranks}, parts)
    return folder


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_file_is_sealed_once_by_the_rank_that_wrote_it(tmp_path):
    folder = save(tmp_path, 1)
    mine, theirs = (seal.digests(folder, rank, 2) for rank in (0, 1))
    assert mine.keys() | theirs.keys() == CONTENTS.keys() - {"README.md"} and not mine.keys() & theirs.keys()
    assert {name for name in theirs if "1" not in name} == set()
    assert {name for name in CONTENTS if "1_" in name or "_1" in name} <= theirs.keys()
    assert seal.faults(folder) == [] and seal.can_be_checked(folder)


def test_the_folder_of_a_run_is_no_checkpoint(tmp_path):
    """It has the state of its end, but neither an optimiser's state nor the run's."""
    save(tmp_path, 1)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1}')
    (tmp_path / "recipe.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match="is no checkpoint, but the folder of a run: name a checkpoint-N folder"):
        find_checkpoint(str(tmp_path), tmp_path)
    assert find_checkpoint("auto", tmp_path) == str(tmp_path / "checkpoint-1")


def cut(length):
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def other_step(path):
    path.write_text(path.read_text().replace('"step": 7', '"step": 8'))


DAMAGES = {
    "a flipped bit in the weights": ("model.safetensors", flip, "has changed since it was written"),
    "a flipped bit in the optimizer": ("optimizer.pt", flip, "has changed since it was written"),
    "a flipped bit in the run's state": ("run_state_1.safetensors", flip, "has changed since it was written"),
    "a flipped bit in a shard": ("optimizer_0/__1_0.distcp", flip, "has changed since it was written"),
    "a missing file of random states": ("rng_state_1.pth", lambda path: path.unlink(), "is missing"),
    "a truncated file": ("optimizer.pt", cut(3), "has 3 bytes of 7,992"),
    "an empty file": ("trainer_state.json", cut(0), "has 0 bytes of 2"),
    "an empty seal": ("complete.json", cut(0), "cannot be read"),
    "a truncated seal": ("complete.json", cut(99), "cannot be read"),
    "a seal that was changed": ("complete.json", other_step, "cannot be read"),
}


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_named_and_gone_round(tmp_path, capsys, name, damage, said):
    save(tmp_path, 3)
    folder = save(tmp_path, 7)
    (folder / "README.md").write_text("another card")
    (tmp_path / "checkpoint-backup").mkdir()
    (tmp_path / "checkpoint-9").mkdir()  # a save that was cut off
    assert resume(tmp_path, "auto") == str(folder) and capsys.readouterr().err == ""
    damage(folder / name)
    found = [fault for rank in range(3) for fault in seal.faults(folder, rank, 3)]
    assert {*found} == {f"{name} {found[0].removeprefix(name + ' ')}"} and said in found[0]
    for wanted in ("auto", "true"):
        assert resume(tmp_path, wanted) == str(tmp_path / "checkpoint-3")
        told = capsys.readouterr().err
        assert f"checkpoint-7 is damaged ({found[0]}): the run continues from checkpoint-3." in told
    with pytest.raises(ValueError, match="which is damaged"):
        resume(tmp_path, str(folder))


def resume(run, wanted):
    return find_checkpoint(wanted, run)


def test_a_run_with_damaged_checkpoints_alone_is_refused_and_one_without_any_begins(tmp_path):
    assert resume(tmp_path, "auto") is None
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        resume(tmp_path, "true")
    flip(save(tmp_path, 3) / "optimizer.pt")
    with pytest.raises(ValueError, match=r"no intact checkpoint: checkpoint-3 is damaged \(optimizer.pt has changed"):
        resume(tmp_path, "auto")


def test_checkpoints_without_digests_are_taken_with_a_line(tmp_path, capsys):
    """As earlier versions wrote them, and as TRL does."""
    folder = save(tmp_path, 3)
    (folder / "complete.json").write_text(json.dumps({"step": 3, "num_processes": 2}))
    assert resume(tmp_path, "auto") == str(folder)
    assert "no digests, so damage to its files cannot be found" in capsys.readouterr().err
    (folder / "complete.json").unlink()
    assert resume(tmp_path, str(folder)) == str(folder) and "no digests" in capsys.readouterr().err
    assert resume(tmp_path, "auto") is None


@pytest.mark.parametrize(
    ("newest", "limit", "best", "left"),
    [
        (5, 2, None, [4, 5]),
        (5, 1, None, [5]),
        (5, None, None, [2, 3, 4, 5, 9]),
        (5, 2, 3, [3, 5]),
        (9, 3, None, [4, 5, 9]),
        (4, 3, None, [2, 3, 4]),
    ],
)
def test_old_checkpoints_and_those_of_an_abandoned_course_go_first(tmp_path, newest, limit, best, left):
    for step in (2, 3, 4, 5, 9):
        save(tmp_path, step)
    mine = [tmp_path / name for name in ("checkpoint-backup", "checkpoint-2-keep", "my-checkpoint-1")]
    for path in mine:
        path.mkdir()
    seal.rotate(tmp_path / f"checkpoint-{newest}", limit, best and str(tmp_path / f"checkpoint-{best}"))
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert all(path.is_dir() for path in mine)


def test_a_folder_is_emptied_before_it_is_written_again(tmp_path):
    """A run that goes on from an older checkpoint, and with fewer processes, leaves nothing of the damaged one."""
    folder = save(tmp_path, 7)
    seal.unseal(folder)
    assert list(folder.iterdir()) == []
