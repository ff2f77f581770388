"""Tables of tasks, protocols and profiles for the pages on them."""

from __future__ import annotations

from docs_text import plain, table

from vlmprune.bench.profiles import profiles
from vlmprune.bench.profiles.profile import Profile
from vlmprune.bench.protocols import EVERY, PROTOCOLS, Protocol
from vlmprune.published.averages import averages
from vlmprune.tasks import built_in_tasks
from vlmprune.tasks.data_task import DataTask
from vlmprune.tasks.generated import GeneratedTask


def generated() -> str:
    """The tasks of drawn scenes."""
    rows = (
        [f"`{task.name}`", task.dimension, plain(task.summary), task.metric.name, f"{task.chance:.1f}"]
        for task in built_in_tasks().values()
        if isinstance(task, GeneratedTask)
    )
    return table(("task", "ability", "questions", "metric", "chance, %"), rows)


def agreement() -> str:
    """A command that runs the methods of the published tables that the report compares.

    Without those whose budget is a mean over layers: models of eight layers cannot meet the smallest.
    """
    ours = dict.fromkeys(one.ours[0] for printed in averages() for one in printed.rows if one.ours)
    ours = {name: None for name in ours if "average=True" not in name}
    return f'```sh\nvlmprune bench --model llava --methods "{",".join(ours)}" --out agreement\n```'


def _sets() -> list[DataTask]:
    return [task for task in built_in_tasks().values() if isinstance(task, DataTask)]


def sets() -> str:
    """The data sets."""
    rows = (
        [
            f"`{task.name}`",
            task.dimension,
            plain(task.summary),
            task.metric.name,
            f"{task.chance:.1f}",
            task.size,
        ]
        for task in _sets()
    )
    return table(("task", "ability", "questions", "metric", "chance, %", "size"), rows)


def layouts() -> str:
    """Where each data set is found."""
    rows = (
        [
            f"`{task.folder or task.name}/`",
            ", ".join(f"`{task.name}`" for task in _sets() if (task.folder or task.name) == place),
            "; ".join(dict.fromkeys(" and ".join(f"`{name}`" for name in layout.names) for layout in task.files)),
            f"`{task.hub.id}`" if task.hub else "",
            task.where,
        ]
        for place, task in {task.folder or task.name: task for task in reversed(_sets())}.items()
    )
    return table(
        ("folder", "tasks", "files, the first that are there", "on the hub", "to be had from"), reversed([*rows])
    )


def protocols() -> str:
    """What protocols set beside the words of each task."""
    rows = ([f"`{one.name}`", plain(one.summary), _lengths(one), _pixels(one)] for one in PROTOCOLS.values())
    return table(("protocol", "what", "length of a reply, tokens", "pixels of a picture"), rows)


def _lengths(protocol: Protocol) -> str:
    own = [
        f"{length:,}" + (f" ({model_type})" if model_type != EVERY else "")
        for model_type, length in protocol.lengths.items()
    ]
    return f"as its words for a task say, else {', '.join(own)}" if own else "as the task says"


def _pixels(protocol: Protocol) -> str:
    return ", ".join(f"{limits.least:,} to {limits.most:,} {name}" for name, limits in protocol.pixels.items())


def tables_of(paper: str) -> str:
    """A command for each accuracy table of a paper, with what is known of it."""
    return "\n\n".join(_section(one) for one in profiles().values() if one.paper == paper)


def _section(profile: Profile) -> str:
    about = [f"{profile.source}: {_listed(profile.tasks)}, asked as `{profile.protocol}`{_mixed(profile)}."]
    notes = "\n".join(f"- {sentence}" for sentence in profile.said()[1:])
    return f"```sh\nvlmprune bench --profile {profile.name}\n```\n\n{about[0]}\n\n{notes}".rstrip()


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _mixed(profile: Profile) -> str:
    others = dict.fromkeys(profile.protocols.values())
    said = [f"{_listed(tuple(t for t, p in profile.protocols.items() if p == name))} as `{name}`" for name in others]
    return f" ({'; '.join(said)})" if said else ""
