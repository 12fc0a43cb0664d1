"""`fastweights data`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fastweights.cli.output import make_console, print_json, track
from fastweights.errors import UserError

STORY_SIZES = {
    "people": "people in a story (bAbI's tasks 1-3 and 5-14; default: as in bAbI)",
    "places": "places of a story",
    "objects": "objects of a story",
    "distractors": "statements between the facts and each question, about people of no question",
}


def stats(args: Namespace) -> None:
    """Count the stories, questions and tokens of a directory."""
    from fastweights.data.babi import statistics

    found = statistics(args.directory, args.as_published)
    if args.json:
        print_json(found)
        return
    from rich.table import Table

    console = make_console(False)
    table = Table("split", "stories", "questions", "tokens", "bAbI tasks", box=None, pad_edge=False)
    for split, counts in found.items():
        table.add_row(
            split,
            *(f"{counts[key]:,}" for key in ("stories", "questions", "tokens")),
            str(len(counts["babi_tasks"])),
        )
    console.print(table)
    for split, counts in found.items():
        if counts["missing"]:
            console.print(f"missing in {split}: {', '.join(counts['missing'])}")


def download(args: Namespace) -> None:
    """Download a corpus."""
    from fastweights.data import download

    folder = Path(args.out) if args.out else download.cache_folder(args.corpus)
    console = make_console(args.json)
    files = download.download(args.corpus, folder, args.mirror)
    paths = [str(path) for path in track(files, "downloading", len(download.CORPORA[args.corpus].names), console)]
    if args.json:
        print_json({"folder": str(folder), "files": paths})
    else:
        console.print(f"{len(paths)} files in {folder}; train on them with: --data {args.out or args.corpus}")


def generate(args: Namespace) -> None:
    """Write generated stories as files."""
    from fastweights.data.babi import SPLITS, parse_babi_tasks
    from fastweights.data.generate import GENERATORS
    from fastweights.data.generate.babi_files import write_files
    from fastweights.data.generate.story_sizes import StorySizes

    tasks = parse_babi_tasks(args.babi_tasks) if args.babi_tasks is not None else tuple(sorted(GENERATORS))
    if args.seed < 0:  # negative seeds are those of the validation and test splits
        raise UserError(f"--seed is {args.seed}; give 0 or more.")
    console = make_console(args.json)
    sizes = {size: value for size in STORY_SIZES if (value := getattr(args, size)) is not None}
    files = write_files(args.out, args.questions, args.seed, tasks, StorySizes(**sizes))
    paths = [str(path) for path in track(files, "writing", len(tasks) * len(SPLITS), console)]
    if args.json:
        print_json({"files": paths})
    else:
        console.print(f"{len(paths)} files in {args.out}; count them with: fastweights data stats {args.out}")


def compare(args: Namespace) -> None:
    """Measure the distance of generated stories from real ones."""
    from fastweights.data.babi import BABI_TASK_NAMES, parse_babi_tasks
    from fastweights.data.compare import compare_directories

    tasks = parse_babi_tasks(args.babi_tasks) if args.babi_tasks is not None else None
    console = make_console(args.json)
    compared = compare_directories(args.real, args.generated, args.split, tasks)
    found = dict(track(compared, "comparing", len(tasks or BABI_TASK_NAMES), console))
    if args.json:
        print_json(
            {
                task: {name: {"distance": c.distance, "floor": c.floor} for name, c in measures.items()}
                for task, measures in found.items()
            }
        )
        return
    from rich.table import Table

    table = Table("task", "measure", "distance", "floor", "ratio", box=None, pad_edge=False)
    for task, measures in found.items():
        for name, c in measures.items():
            table.add_row(str(task), name, f"{c.distance:.4f}", f"{c.floor:.4f}", f"{c.ratio:.2f}")
    console.print(table)
    ratios = [c.ratio for measures in found.values() for c in measures.values()]
    near, far = sum(ratio <= 2 for ratio in ratios), sum(ratio > 4 for ratio in ratios)
    console.print(
        f"{near} of {len(ratios)} measures ({near / len(ratios):.1%}) within twice the floor, {far} above four times."
    )
