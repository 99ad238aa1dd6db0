"""Parts of the small experiments that compute: groups of tokens, entropies in batches, problems, plans."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import branches, embedded, entries, judge, measure, model_sizes, pairs, smollm2, updates, walks
from entropy_grpo import EntropyForkGRPOConfig
from entropy_grpo.analysis.views import updates as views
from entropy_grpo.objective.methods.registry import REGISTERED
from entropy_grpo.runs import files
from entropy_grpo.tasks import cold_start, registry, word_stories


def test_groups_of_tokens_are_those_of_the_demonstrations():
    """The walk's decisions are its moves. A story's are the words that say what to do; others are chosen freely."""
    walk = ["take", " +4", " need", " -2", " take", " -2", " need", " 0", " yes", " so", " \\boxed{", "3", "+4", "}"]
    chosen = [token for token, group in zip(walk, branches.walk_groups(walk), strict=True) if group == "decisions"]
    assert chosen == [" +4", " -2"]
    rng = random.Random(0)
    for problem in itertools.islice(word_stories.problems("train", 0), 50):
        words = word_stories.demonstration(problem, rng).split()
        groups = branches.story_groups(words)
        withdrawn = words.count("wait")
        assert groups.count("decisions") == len(problem.sentences) + withdrawn
        # An opening, an ending; of each sentence a connective and a reason; of a sum its result.
        sums = sum(word in ("add", "join", "take", "subtract") for word in words)
        assert groups.count("wording") == 2 + 2 * len(problem.sentences) + withdrawn + sums


@pytest.fixture(scope="module")
def tiny():
    tokenizer = cold_start.build_tokenizer()
    return cold_start.build_model(tokenizer, 0).eval(), tokenizer


def test_entropies_in_batches_are_those_of_each_response_alone(tiny):
    model, tokenizer = tiny
    texts = [("go 3 to 8\n", "take +4 need +1"), ("go 3 to 8 with +4 +1\n", "take +1")]
    paths = [tuple(tokenizer(text)["input_ids"] for text in pair) for pair in texts]
    for (prompt, ids), found in zip(paths, branches.score(model, paths), strict=True):
        with torch.inference_mode():
            p = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double().softmax(-1)
        assert found == pytest.approx(-(p * p.log()).sum(-1).numpy(), abs=1e-5)


def test_figures_of_a_group_are_those_of_its_tokens(tiny):
    _, tokenizer = tiny
    ids = tokenizer("take +4 need +1 take +1")["input_ids"]
    values = [np.array([0.1, 1.0, 0.2, 0.3, 0.4, 0.5])]
    found = branches.by_group("number_walk", tokenizer, [([0], ids)], values)
    assert found["decisions"]["mean"] == pytest.approx(0.75) and found["decisions"]["tokens"] == 2
    assert found["other tokens"]["p50"] == pytest.approx(0.25) and found["all tokens"]["tokens"] == 6
    assert "wording" not in found


@pytest.mark.parametrize("task", embedded.STUDIES)
def test_an_answer_is_right_as_the_task_says(task):
    study = embedded.STUDIES[task].task
    (problem,) = walks.problems(study, 1)
    lessons = registry.LESSONS[embedded.STUDIES[task].name]
    rows = lessons.demonstrations(200, 0)
    solved = {row["prompt"]: row["completion"] for row in rows}
    verdicts = []
    for one in itertools.islice(study.problems("train", 0), 200):
        _, right = walks.answer(study, one, solved[one.prompt])
        good, choices = study.choices({"prompt": one.prompt, "completion": solved[one.prompt]})
        assert right or good < choices or task == "number_walk"
        verdicts.append(right)
    assert 0.1 < sum(verdicts) / len(verdicts) < 0.9
    assert walks.answer(study, problem, "no box") == (None, False)
    assert walks.answer(study, problem, f"so \\boxed{{{problem.solution}}}")[1] == (task == "word_stories")


def test_sums_share_no_numbers_and_only_the_exact_sum_counts():
    rows = pairs.problems(400, seed=0)
    numbers = [tuple(sorted(map(int, row["prompt"].splitlines()[1].rstrip(" =").split(" + ")))) for row in rows]
    assert len(set(numbers)) == 400 and pairs.EXAMPLE not in numbers
    assert all(str(sum(pair)) == row["solution"] for pair, row in zip(numbers, rows, strict=True))
    assert {a > b for a, b in (row["prompt"].splitlines()[1].rstrip(" =").split(" + ") for row in rows)} == {
        True,
        False,
    }
    texts = [" 21\n5", "21.", " 210", " 2", "= 21", ""]
    assert pairs.exact([], texts, ["21"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    for row in pairs.stories(50, seed=0):
        a, b = (int(word) for word in row["problem"].split() if word.isdigit())
        assert int(row["answer"]) == (a + b if "more" in row["problem"] else a - b) > 0


def test_a_plan_counts_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setenv(cold_start.CACHE_VARIABLE, str(tmp_path / "cache"))
    planned = model_sizes.trials("word_stories", ["0.3M", "6M"])
    assert len(planned) == 20 and len({trial.folder.path for trial in planned}) == 20
    cold, run = model_sizes.MINUTES["word_stories"]["0.3M"]
    assert f"| word_stories | 0.3M | 5 | {cold:g} | 10 | {run:g} | {5 * cold + 10 * run:.0f} |" in model_sizes.plan(
        planned
    )
    for trial in planned[:2]:
        files.write_json(trial.folder.evaluation, {"before": {}, "after": {}})
    model_sizes.checkpoint("word_stories", "0.3M", 1).mkdir(parents=True)
    assert f"| 0.3M | 3 | {cold:g} | 8 | {run:g} |" in model_sizes.plan(planned)
    assert model_sizes.ended(planned) == []
    assert {trial.model for trial in planned} == {"embedded:word_stories:0.3M", "embedded:word_stories:6M"}
    (own,) = {trial.model for trial in model_sizes.trials("number_walk", ["0.7M"])}
    assert own == "embedded:number_walk"


def test_parts_of_the_pretrained_model_have_folders_of_their_own(capsys):
    folders = [smollm2.JOB.place(name) for name in (*smollm2.ARMS, smollm2.LORA, smollm2.STORIES, "merged")]
    assert len(set(folders)) == 6 and not any(folder.suffix for folder in folders)
    assert replace(smollm2.JOB, name="other").place("LoRA") not in folders
    smollm2.main(["--plan"])
    assert "minutes of a core in all" in capsys.readouterr().out


def changes_of(seed):
    """Changes of 60 tokens in 10 responses, all figures of them, and the changes themselves."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.exponential(1, 60) for name in ("entropy", "gradient")}
    columns |= {"response": np.arange(60) // 6, "token": rng.integers(0, 4, 60), "correct": np.arange(60) // 6 % 2}
    columns["log_prob"], after = -rng.exponential(1, 60), -rng.exponential(1, 60)
    found = views.between(columns, after, dict(enumerate(["7", " so", "Wait", " the"])))
    return updates.kept(found), np.exp(after) - np.exp(columns["log_prob"])


def test_tables_of_changes_have_the_means_over_seeds():
    by_seed, changes = zip(*map(changes_of, range(3)), strict=True)
    found = updates.of_seeds(by_seed)
    groups, kinds, perplexities, _ = (part.splitlines() for part in updates.table(found).split("\n\n"))
    means = np.array([[one.mean(), abs(one).mean()] for one in changes])
    half = 4.302653 * means.std(0, ddof=1) / math.sqrt(3)  # Student's t with two degrees of freedom
    name, tokens, mean, _, size, *_ = (cell.strip() for cell in groups[2].split("|")[1:-1])
    expected = [np.array([m, m - h, m + h]) for m, h in zip(means.mean(0), half, strict=True)]
    assert (name, tokens) == ("all responses", "180")
    assert mean == "{:+.4f} [{:+.4f}, {:+.4f}]".format(*expected[0])
    assert size == "{:.4f} [{:.4f}, {:.4f}]".format(*expected[1])
    for table, column in ((kinds, 2), (kinds, 3), (perplexities, 3), (perplexities, 4)):
        shares = [float(line.split("|")[column].split()[0]) for line in table[2:]]
        assert sum(shares) == pytest.approx(1, abs=0.003)


def test_changes_are_tested_over_seeds_as_one_family():
    by_seed, changes = zip(*map(changes_of, range(4)), strict=True)
    tests = updates.of_seeds(by_seed)["tests"]
    expected = stats.ttest_1samp([one.mean() for one in changes], 0).pvalue
    assert tests["change"]["all"]["p_value"] == pytest.approx(expected)
    family = sorted((test for part in tests.values() for test in part.values()), key=lambda test: test["p_value"])
    corrected = [min(test["p_value"] * (len(family) - i), 1) for i, test in enumerate(family)]
    assert [test["p_corrected"] for test in family] == pytest.approx(np.maximum.accumulate(corrected))


def test_results_of_seeds_are_joined():
    def of(seed):
        gain = {"value": 0.1 * seed, "low": -1.0, "high": 1.0, "p_value": 0.5}
        share = {"value": 0.5 + 0.01 * seed**2, "low": 0.0, "high": 1.0}
        return {"tokens": 10 + seed, "threshold": 0.3 * seed, "settings": [{"gain": gain}, {"accuracy": share}]}

    found = walks.over_seeds([of(seed) for seed in (1, 2, 4)])
    assert found["tokens"] == 37 and found["threshold"] == pytest.approx(0.7)
    (gain,), (accuracy,) = (one.values() for one in found["settings"])
    test = stats.ttest_1samp([0.1, 0.2, 0.4], 0)
    assert gain["p_value"] == pytest.approx(test.pvalue) and gain["by_seed"] == pytest.approx([0.1, 0.2, 0.4])
    assert [gain["low"], gain["high"]] == pytest.approx([*test.confidence_interval(0.95)])
    assert "p_value" not in accuracy
    interval = stats.ttest_1samp([0.51, 0.54, 0.66], 0).confidence_interval(0.95)
    assert [accuracy["low"], accuracy["high"]] == pytest.approx([*interval])


def test_only_changed_solutions_have_irrelevant_content():
    rows = judge.responses()
    assert len(rows) == judge.PROBLEMS * len(judge.FORMS)
    for first in range(0, len(rows), len(judge.FORMS)):
        mine = {row["form"]: row["response"] for row in rows[first : first + len(judge.FORMS)]}
        (problem,) = {row["problem"] for row in rows[first : first + len(judge.FORMS)]}
        plain = mine.pop("as written")
        assert registry.load("embedded:word_stories").answer(problem, plain) is not None
        assert sorted(mine["garbled"].replace(" ", "")) == sorted(plain.replace(" ", ""))
        assert len({plain, *mine.values()}) == len(judge.FORMS)
        assert all(text.count("\\boxed{") == 1 for text in (plain, *mine.values()))
        steps = plain.partition("\\boxed{")[0].rsplit(" . ", 1)[0]
        assert mine["repeated"].count(steps) == judge.REPEATED + 1
        before, after = (mine[f"another problem {place} the answer"] for place in ("before", "after"))
        assert before.endswith(f" {plain}") and after.startswith(f"{plain} . ")
        assert before.removesuffix(plain).strip() == after.removeprefix(f"{plain} . ") != ""


def test_verdicts_are_counted_by_form():
    rows = [{"form": name} for _ in range(4) for name in judge.FORMS]
    verdicts = [{"judge": True, "rule": row["form"] == "repeated"} for row in rows]
    verdicts[0]["judge"] = None
    verdicts[len(judge.FORMS)]["judge"] = False
    found = judge.summary(rows, verdicts)
    plain = found["as written"]
    assert (plain["responses"], plain["unread"], plain["judge"]["value"]) == (4, 1, pytest.approx(2 / 3))
    assert plain["rule"]["value"] == 0 and found["repeated"]["rule"]["value"] == 1


def test_every_registered_method_is_timed(tmp_path):
    arms = entries.arms()
    assert arms.keys() == {entries.BASE, *REGISTERED}
    for name, settings in arms.items():
        args = EntropyForkGRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)
        numbers = (args.epsilon, args.epsilon_high, args.top_entropy_quantile)
        assert all(value is None or isinstance(value, (int, float)) for value in numbers), name


def test_time_within_a_class_is_counted_once(monkeypatch):
    class Owner:
        def outer(self):
            return self.inner() + 1

        def inner(self):
            return 1

    clock = iter(range(100))
    monkeypatch.setattr(entries.time, "perf_counter", lambda: next(clock))
    within = entries.Within(Owner)
    assert Owner().outer() == 2 and within.seconds == 2  # from 0 to 2, and the inner call looks at the clock at 1
    assert Owner().inner() == 1 and within.seconds == 3


def test_corrections_are_counted_by_the_decision_that_they_withdraw():
    story = "tom has 8 coins . ben gives him 4 . he sees 3 . he loses 2 . how many coins has tom ?\n"
    start = "start with 8 . then ben gives him 4 so"
    answers = [
        # Right, then wrong and mended, then right and spoilt.
        f"{start} add 4 to 8 and get 12 . next he sees 3 so take 3 from 12 and get 9 . wait stay at 12 . "
        "now he loses 2 so take 2 from 12 and get 10 . wait stay at 12 . so the answer is \\boxed{12}",
        # Wrong three times, withdrawn once and wrong again; the last decision belongs to no sentence.
        f"wait {start} stay at 8 . wait take 4 from 8 and get 4 . next he sees 3 so add 3 to 4 and get 7 . "
        "now he loses 2 so stay at 7 . then stay at 7 . so the answer is \\boxed{7}",
    ]
    found = embedded.corrections([{"prompt": story, "completion": answer} for answer in answers])
    # Wrong are two decisions of the first answer and four of the second. Right are three of the first.
    assert found == {"wrong withdrawn": 2 / 6, "right withdrawn": 1 / 3, "mended": 1 / 3}
