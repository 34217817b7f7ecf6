"""What is left to compute on when a device has failed in the middle of a run. Pure."""

from __future__ import annotations

from dataclasses import replace

from prefork.platform_matrix.matrix import Plan, decide


def give_up(plan: Plan, place: int, reason: str) -> Plan:
    """The plan without one of its GPUs: on the others that were asked for, or, where nobody has asked for any, on
    another one or on the CPU. Refused if nothing is left. place: among the plan's devices. reason: what it died of."""
    failed = plan.chosen[place]
    known = plan.facts.devices
    present = tuple(replace(device, failed=reason) if device == failed else device for device in known.present)
    rest = tuple(label for other, label in enumerate(plan.labels) if other != place)
    request = replace(plan.request, devices=rest or plan.request.devices) if plan.request.devices else plan.request
    return decide(replace(plan.facts, devices=replace(known, present=present)), request)
