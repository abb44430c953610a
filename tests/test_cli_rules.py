"""`cascade-trt rules` and `trees`: what can be named, with a bundle and without; what a misspelt name meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cascade_trt.cli import cli
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.pipeline import Pipeline
from cascade_trt.runtime.rules import RULE_NAMES
from cascade_trt.runtime.tree import TREE_FORMS, TREE_NAMES, get_tree


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def told(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    return result.stdout


def test_every_rule_and_its_settings(tiny_bundle: Path, tiny: Pipeline) -> None:
    """The defaults are the rule's own, and what is allowed is what it takes: the names are spelt back to it."""
    rules = json.loads(run("rules", tiny_bundle, "--json").stdout)
    assert [rule["name"] for rule in rules] == list(RULE_NAMES)
    shown = told("rules")
    assert sum(len(rule["settings"]) for rule in rules) > 20
    for rule in rules:
        assert rule["says"] and rule["name"] in shown
        for setting in rule["settings"]:
            assert setting["name"] in shown and setting["allowed"]
            spelt = f"{rule['name']}:{setting['name']}="
            if rule["problem"] is None:
                assert tiny.rule(f"{spelt}{setting['default']}") == tiny.rule(rule["name"])
            with pytest.raises(CascadeError):
                tiny.rule(f"{spelt}?!")
    says = {rule["name"]: rule["says"] for rule in rules}
    assert len(set(says.values())) == len(says)  # none is described as another is
    assert all(one[0].isupper() and one.endswith(".") and "`:" not in one for one in says.values())
    assert "`delta`" in says["lantern"] and "`lambda`" in says["lantern++"]
    by_name = {rule["name"]: {setting["name"]: setting for setting in rule["settings"]} for rule in rules}
    assert by_name["exact"] == by_name["ar"] == {}
    assert by_name["cascade"]["tau_pos"]["allowed"] == "between 0 and 1, or off"
    assert by_name["gsd"]["size"] == {"name": "size", "default": "10", "allowed": "at least 1"}
    assert "lambda" in by_name["lantern++"]


def test_rules_of_a_bundle(tiny_bundle: Path) -> None:
    rules = {rule["name"]: rule for rule in json.loads(run("rules", tiny_bundle, "--json").stdout)}
    assert (rules["ar"]["tree"], rules["exact"]["tree"]) == (None, "auto")
    assert rules["strict"]["problem"] is None and rules["strict"]["tree"] == "chain"
    unfit = [rule for rule in rules.values() if rule["problem"] is not None]
    assert unfit and all("calibrate states" in rule["problem"] for rule in unfit)  # the bundle has no table of them
    assert "in this bundle" in told("rules", tiny_bundle)


def test_every_tree(tiny_bundle: Path) -> None:
    listed = json.loads(run("trees", "--json").stdout)
    assert [tree["name"] for tree in listed["named"]] == list(TREE_NAMES)
    assert listed["forms"] == TREE_FORMS
    for tree in listed["named"]:
        assert tree["nodes"] == get_tree(tree["name"]).size == 1 + tree["drafted"] + tree["guessed"]
    shown = told("trees")
    assert all(name in shown for name in (*TREE_NAMES, *TREE_FORMS))
    of_bundle = json.loads(run("trees", tiny_bundle, "--json").stdout)
    assert {tree["name"] for tree in of_bundle["built"]} == {*TREE_NAMES, "chain_1", "chain_2"}
    assert all(tree["problem"] is None for tree in of_bundle["named"])
    assert "built into" in told("trees", tiny_bundle)


@pytest.mark.parametrize("form", TREE_FORMS)
def test_every_form_is_a_tree(form: str) -> None:
    numbers = iter((9, 4, 3))
    get_tree("".join(str(next(numbers)) if letter.isupper() else letter for letter in form))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench", "--rule", "cascde"), "did you mean 'cascade'?"),
        (("bench", "--rule", "Exact"), "did you mean 'exact'?"),
        (("bench", "--rule", "cascade:tau_poss=0.9"), "did you mean 'tau_pos'?"),
        (("bench", "--rule", "lantern++:lamda=2"), "did you mean 'lambda'?"),
        (("bench", "--tree", "mixd_32"), "did you mean 'mixed_32'?"),
        (("bench", "--tree", "jacobi_16x"), "did you mean 'jacobi_16'?"),
        (("bench", "--tree", "smal_6"), "did you mean 'small_6'?"),
        (("bench", "--tree", "mc_sim_7b_36"), "did you mean 'mc_sim_7b_63'?"),
        (("bench", "--rule", "strickt"), "did you mean 'strict'?"),
        (("bench", "--tree", "eagle2_06"), "did you mean 'eagle2_60'?"),
        (("build", "llamagn", "--checkpoint", "x", "--vq", "y"), "did you mean 'llamagen'?"),
        (("build", "llamagen-t2i-xl-stge1", "--dummy-weights"), "did you mean 'llamagen-t2i-xl-stage1'?"),
        (("build", "emojii"), "did you mean 'emoji'?"),
        (("genrate", "x"), "Did you mean 'generate'?"),
        (("generate", "x", "--rul", "ar"), "--rule"),
        (("bench", "--rule", "zzzz"), "unknown rule 'zzzz': choose"),
    ],
)
def test_a_misspelt_name(tiny_bundle: Path, arguments: tuple[str, ...], said: str) -> None:
    bundle = ("--bundle", tiny_bundle) if arguments[0] == "bench" else ()
    result = run(*arguments, *bundle)
    assert result.exit_code == 2 and said in result.stderr, result.output


@pytest.mark.parametrize("command", ["rules", "trees"])
def test_no_bundle(command: str) -> None:
    result = run(command, "nowhere")
    assert result.exit_code == 2 and "there is no bundle in nowhere" in result.stderr
