"""The page of one experiment."""

from __future__ import annotations

from rescompile.presenting.html import page
from rescompile.presenting.plots.plot import Plot
from rescompile.presenting.plots.training import compared_curves, layer_responses
from rescompile.training_report import ExperimentNetwork, ExperimentReport
from rescompile.wording import counted, duration


def experiment_plots(report: ExperimentReport) -> list[Plot]:
    """Every plot of the page, in its order."""
    kinds = sorted({network.plain for network in report.networks}, reverse=True)
    return [
        *(compared_curves(report.networks, plain=plain) for plain in kinds),
        layer_responses(report.networks),
    ]


def render_experiment(report: ExperimentReport) -> str:
    """The page as text, to be written as UTF-8; the same report gives the same page."""
    return page.render(
        "experiment.html",
        title=report.question,
        tone="",
        headline=headline(report),
        explanation=(
            f"{counted(len(report.networks), 'network')} on {report.data}, {report.steps:,} steps each, "
            f"{counted(len(report.seeds), 'seed')}. All have the same recipe."
        ),
        notes=report.notes,
        plots=experiment_plots(report),
        seeds=_seeds,
        networks=report.networks,
        has_paper=has_paper(report),
        facts=[
            ("recipe", report.recipe or "the user's own"),
            ("time", duration(report.seconds)),
            *report.environment.items(),
        ],
    )


def has_paper(report: ExperimentReport) -> bool:
    """Whether the paper says anything about these networks and images."""
    return any(network.paper_error is not None for network in report.networks)


def headline(report: ExperimentReport) -> str:
    """The effect of depth on the training error of each kind of network, or the lowest test error."""
    parts = [
        f"{word}: {_change([network for network in report.networks if network.plain == plain])}"
        for plain, word in ((True, "plain"), (False, "residual"))
        if len({network.depth for network in report.networks if network.plain == plain}) > 1
    ]
    if report.experiment == "degradation" and len(parts) == 2:
        return "Training error, " + "; ".join(parts)
    best = min(report.networks, key=lambda network: network.test_error)
    return f"{best.name} has the lowest test error, {best.test_error:.2f} %"


def _change(networks: list[ExperimentNetwork]) -> str:
    ordered = sorted(networks, key=lambda network: network.depth)
    low, high = ordered[0], ordered[-1]
    return f"{low.train_error:.2f} % with {low.depth} layers, {high.train_error:.2f} % with {high.depth}"


def _seeds(errors: tuple[float, ...]) -> str:
    return " ".join(f"{error:.2f}" for error in errors)
