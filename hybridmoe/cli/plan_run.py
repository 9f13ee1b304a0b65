"""Run of `hybridmoe plan`: the plan and the report for a file or a published model.

`planning.memory_plan` decides, `planning.cost_model` predicts.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hybridmoe.cli.options import load_options_of
from hybridmoe.cli.plan import plan_command
from hybridmoe.cli.plan_hosts import run_hosts_plan
from hybridmoe.cli.plan_rates import PlannedGpus, gpus_of, rates_for
from hybridmoe.cli.plan_report import Report, sections
from hybridmoe.cli.plan_verdict import quant_section, verdict
from hybridmoe.cli.tables import Section, print_sections
from hybridmoe.demo import demo_path
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import Outline, outline_of, read_outline, with_expert_type
from hybridmoe.hardware.gpu import NoGpu
from hybridmoe.placement.budgets import plan_for, plan_within
from hybridmoe.planning.conversation import Conversation
from hybridmoe.planning.cost_model import HitCurve
from hybridmoe.planning.draft_gain import draft_gain
from hybridmoe.planning.fewer_gpus import fewer_gpus
from hybridmoe.planning.gains import gains
from hybridmoe.planning.hit_curve import read_hit_curve
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.prefetch_gain import can_read_ahead, read_ahead_of
from hybridmoe.planning.price import Price, price_of
from hybridmoe.planning.problem import Budgets
from hybridmoe.planning.releases import Release
from hybridmoe.planning.stage_cost import StagedCost

__all__ = ["run_plan", "verdict_of"]

_RELEASE_CONTEXT_TOKENS = 32768  # the whole context of a release may not fit where it runs well
_PRICES = ("watts", "price_kwh", "hardware_price", "lifetime_years", "utilisation")


def run_plan(model: Path | Release | None, as_json: bool, options: Mapping[str, Any]) -> None:
    """Plan, predict and print. options: of the command. Errors: ConfigError, GGUFError."""
    outline = _outline(model, options["quant"])
    asked = load_options_of(options)
    if options["gpu"] is not None and asked.device == "auto":
        asked = replace(asked, device="cuda")
    if isinstance(model, Release) and asked.context_tokens is None:
        context = min(_RELEASE_CONTEXT_TOKENS, outline.config.context_tokens)
        asked = replace(asked, context_tokens=context)
    if options["hosts"] is not None:
        run_hosts_plan(outline, asked, lambda plan: _check(plan, options), as_json, options)
        return
    for name in ("link_us", "link_gbs"):
        if options[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is of --hosts, which is missing")
    planned = gpus_of(asked.device, options)
    plan = plan_for(outline.config, outline.tensors, asked, planned.gpus, options["ram"])
    _check(plan, options)

    def within(budgets: Budgets) -> Plan:
        return plan_within(outline.config, outline.tensors, asked, budgets)

    report = _predict(outline, plan, planned, within, options)
    if isinstance(model, Release):
        report = replace(report, quant=None)
    if (line := _fewer_gpus(within, planned, report, options)) is not None:
        report = replace(report, notes=(*report.notes, line))
    said = verdict(report, within, may_add_gpu=asked.device != "cpu")
    if as_json:
        click.echo(json.dumps({"verdict": said, **report.as_json()}))
        return
    found = [Section("", (), [("verdict", said)]), *sections(report)]
    if isinstance(model, Release):
        found.insert(1, quant_section(model, report, asked, options["quant"]))
    print_sections(found)


def verdict_of(path: Path) -> str:
    """Judge a file on this machine as `hybridmoe plan` does without options.

    Errors: ConfigError, GGUFError.
    """
    outline = read_outline(path)
    options = plan_command.make_context("plan", []).params
    context = outline.config.context_tokens
    options["prompt_tokens"] = min(options["prompt_tokens"], context // 2)
    options["answer_tokens"] = min(options["answer_tokens"], context // 4)
    asked = load_options_of(options)
    planned = gpus_of(asked.device, options)
    plan = plan_for(outline.config, outline.tensors, asked, planned.gpus, options["ram"])
    _check(plan, options)

    def within(budgets: Budgets) -> Plan:
        return plan_within(outline.config, outline.tensors, asked, budgets)

    report = _predict(outline, plan, planned, within, options)
    return verdict(report, within, may_add_gpu=True)


def _outline(model: Path | Release | None, quant: str | None) -> Outline:
    if isinstance(model, Release):
        quant = quant or model.quant
        named = {**model.metadata, "general.name": f"{model.name} {quant.upper()}"}
        return outline_of(named, quant)
    outline = read_outline(model or demo_path())
    if quant is None:
        return outline
    return replace(outline, tensors=with_expert_type(outline.tensors, quant))


def _check(plan: Plan, options: Mapping[str, Any]) -> None:
    """Errors: ConfigError where the system would page, or for a conversation that is too long."""
    if plan.shortage is not None:
        raise ConfigError(plan.shortage)
    num_tokens = options["prompt_tokens"] + options["answer_tokens"]
    if num_tokens > plan.engine.context_tokens:
        raise ConfigError(
            f"{options['prompt_tokens']} tokens of prompt and {options['answer_tokens']} of answer"
            f" are more than the context of {plan.engine.context_tokens}: lower them or raise --ctx"
        )


def _predict(
    outline: Outline,
    plan: Plan,
    planned: PlannedGpus,
    within: Callable[[Budgets], Plan],
    options: Mapping[str, Any],
) -> Report:
    """Predict speed, what would raise it, and cost."""
    gpu_rates = planned.rates if plan.vram else ()
    rates, origins = rates_for(plan, outline, options, gpu_rates[0] if gpu_rates else None)
    curve = _curve(options)
    found = {"vram_rate": options["vram_hit_rate"], "hit_rate": options["hit_rate"]}
    cost = StagedCost(plan, rates, gpu_rates, curve, **found)
    num_prompt, num_answer = options["prompt_tokens"], options["answer_tokens"]
    reading = cost.prompt(num_prompt)
    position = num_prompt + num_answer // 2
    answering = cost.decode(position)
    has_drafts = plan.problem.sizes.config.runs_mtp
    notes = [planned.note] if planned.note is not None and plan.vram else []
    if options["expert_prefetch"] is None and can_read_ahead(plan) and rates.disk is not None:
        notes.append(read_ahead_of(plan, rates, cost.hits).line(rates))
    given = ("hit_rate", "vram_hit_rate", "hit_curve")
    return Report(
        outline=outline,
        quant=options["quant"],
        plan=plan,
        notes=tuple(notes),
        rates=rates,
        gpu_rates=gpu_rates,
        origins=origins,
        hits=cost.hits,
        are_hits_given=any(options[name] is not None for name in given),
        prompt=reading,
        decode=answering,
        drafts=draft_gain(plan, cost, rates, position) if has_drafts else None,
        gains=gains(plan, within, rates, gpu_rates, _conversation(options), curve, **found),
        answer_tokens=num_answer,
        price=_price(reading.total_s + num_answer * answering.total_s, options),
        price_options={name: options[name] for name in _PRICES},
    )


def _curve(options: Mapping[str, Any]) -> HitCurve | None:
    return read_hit_curve(options["hit_curve"]) if options["hit_curve"] is not None else None


def _conversation(options: Mapping[str, Any]) -> Conversation:
    return Conversation(options["prompt_tokens"], options["answer_tokens"])


def _fewer_gpus(
    within: Callable[[Budgets], Plan],
    planned: PlannedGpus,
    report: Report,
    options: Mapping[str, Any],
) -> str | None:
    """Say which of several GPUs are predicted to be faster without the others, if any."""
    plan = report.plan
    if not plan.split or isinstance(planned.gpus, NoGpu):
        return None
    if options["vram_hit_rate"] is not None or options["hit_rate"] is not None:
        return None  # of the slots of all GPUs: those of fewer are not known
    rates = report.rates, report.gpu_rates
    found = fewer_gpus(plan, within, *rates, _conversation(options), _curve(options))
    return None if found is None else found.line([gpu.number for gpu in planned.gpus])


def _price(conversation_s: float, options: Mapping[str, Any]) -> Price | None:
    if options["watts"] is None:
        return None
    return price_of(conversation_s, **{name: options[name] for name in _PRICES})
