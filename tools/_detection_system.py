"""The monitor under test: its maps at both budgets, with heads that lack some faults, and what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
from _detection_collect import (
    atomic,
    collect,
    digest,
    load_images,
    load_scenes,
    rows_folder,
    stream_rows,
    stream_tables,
)
from _detection_config import (
    ABLATIONS,
    BUDGETS,
    LIGHT,
    LIGHT_LACKS,
    RATE_HZ,
    Configuration,
    Mode,
    TripPlan,
    folds,
    trip_plans,
)
from _detection_watch import Said, alarms_of, watch
from _venv import ROOT

from edge_monitor.config import CalibrationSettings
from edge_monitor.map_file import load_region_map, save_region_map
from edge_monitor.neutrality import certify_neutrality
from edge_monitor.offline.calibrate import JUDGE_SHARE, calibrate
from edge_monitor.offline.fault_bank import Bank, make_bank
from edge_monitor.offline.head_training import fit_head
from edge_monitor.offline.injection import Injector, Range
from edge_monitor.offline.observe import FIT_SHARE, GOLDEN_TOLERANCE, N_GOLDEN, SCENE_LEAD, Images, Observed
from edge_monitor.offline.scene import Scene
from edge_monitor.offline.thresholds import fit_evidence
from edge_monitor.probe import Probe
from edge_monitor.region_map import FaultHead, Golden, RegionMap, Runtime
from edge_monitor.reports import CHANNELS
from edge_monitor.taps.onnx import quiet_options
from edge_monitor.types import FloatArray, StatRow

OTHER = "other injectors"


class Bench(msgspec.Struct, frozen=True):
    """One configuration in one mode, with the folders of its trips and of what was made of them."""

    configuration: Configuration
    mode: Mode
    rows: Path
    results: Path

    @classmethod
    def open(cls, configuration: Configuration, mode: Mode, cache: Path) -> Bench:
        """Choose the folders; there are other ones whenever the monitor or the benchmark has changed."""
        code = [*(ROOT / "edge_monitor").rglob("*.py"), *(ROOT / "tools").glob("_detection_*.py")]
        code = [path for path in code if PRESENTING.isdisjoint(path.relative_to(ROOT).parts)]
        results = cache / f"{configuration.name}-{mode.name}-{digest(configuration.path, sorted(code))}"
        results.mkdir(parents=True, exist_ok=True)
        return cls(configuration, mode, rows_folder(configuration, cache), results)

    def plans(self, split: str) -> list[TripPlan]:
        return trip_plans(self.configuration, self.mode, split)


PRESENTING = {"_detection_results.py", "_detection_goals.py", "_detection_page.py", "cli.py", "commands"}
"""Files and folders that change no measured number."""


def collect_trip(bench: Bench, plan: TripPlan) -> int:
    """Collect one trip; its frames."""
    return collect(bench.configuration, plan, bench.rows)


@lru_cache(maxsize=1)
def pool(bench: Bench) -> dict[str, list[StatRow]]:
    """Rows of the pool: those that fit, those that tune, those that judge."""
    rows = stream_rows(stream_tables(bench.plans("pool"), bench.rows))
    n_fit, n_known = pool_parts(len(rows))
    return {"fit": rows[:n_fit], "tune": rows[n_fit:n_known], "judge": rows[n_known:]}


def pool_parts(n: int) -> tuple[int, int]:
    """Rows that fit, and rows that fit or tune, as `calibrate` divides them."""
    return int(n * FIT_SHARE), int(n * (1.0 - JUDGE_SHARE))


def observed(bench: Bench) -> Observed:
    """All that calibration asks for."""
    plans = bench.plans("pool")
    parts = pool(bench)
    rows = [*parts["fit"], *parts["tune"], *parts["judge"]]
    images = load_images(plans, bench.rows)
    seen: list[StatRow] = []
    model = bench.configuration.path
    probe = Probe.onnx(model, on_row=seen.append, sess_options=quiet_options())
    name = probe.get_inputs()[0].name
    answers = [probe.run(None, {name: image[None]})[0].ravel().astype(np.float64) for image in images]
    chosen = np.arange(N_GOLDEN) * len(images) // N_GOLDEN
    outputs = np.stack([answers[k] for k in chosen])
    golden = Golden(
        images[chosen],
        outputs,
        np.stack([seen[k].signals for k in chosen]),
        GOLDEN_TOLERANCE * max(1.0, float(np.abs(outputs).max())),
    )
    data = model.read_bytes()
    return Observed(
        model=model.name,
        model_sha256=hashlib.sha256(data).hexdigest(),
        source=bench.configuration.frames(plans[0].seed, len(rows)).frames,
        seed=plans[0].seed,
        frame_rate_hz=RATE_HZ,
        taps=probe.taps,
        rows=rows,
        golden=golden,
        device=Runtime.here(),
        model_bytes=data,
        neutrality=certify_neutrality(
            data, taps=[tap.name for tap in probe.taps[1:]], choose_frames=lambda _: images[chosen]
        ),
        images=Images(images, np.stack([row.spatial.voxels for row in seen if row.spatial])),
        scenes=tuple(load_scenes(plans, bench.rows, SCENE_LEAD)),
    )


def calibrated(bench: Bench) -> int:
    """Calibrate for one false alarm per hour, as a user does."""
    target = map_path(bench, "1 per hour")
    if not target.exists():

        def keep(bank: Bank, clean: FloatArray) -> None:
            save_bank(bench, "both", bank)
            with atomic(bench.results / "clean.npy") as part:
                np.save(part, clean)

        settings = CalibrationSettings(alarms_per_hour=1.0)
        save_region_map(calibrate(observed(bench), settings, keep=keep), target)
    return 1


def map_path(bench: Bench, budget: str, head: str = "") -> Path:
    """File of the map for a budget, with the calibrated head or another of `heads`, or one of `ABLATIONS`."""
    name = f"map {budget} {head}".strip().replace(" ", "-")
    return bench.results / f"{name}.npz"


@lru_cache(maxsize=64)
def load_map(bench: Bench, budget: str, head: str = "") -> RegionMap:
    return load_region_map(map_path(bench, budget, head))


def injector_of(bench: Bench) -> Injector:
    """Injector with the range of the pictures that calibration saw."""
    region_map = load_map(bench, "1 per hour")
    full_scale = Range.of(load_images(bench.plans("pool"), bench.rows))
    return Injector(bench.configuration.path.read_bytes(), region_map.taps, full_scale, RATE_HZ)


def save_bank(bench: Bench, name: str, bank: Bank) -> None:
    with atomic(bench.results / f"bank-{name}.npz") as part:
        np.savez(part, names=bank.names, inputs=bank.inputs, labels=bank.labels, scenes=bank.scenes)


def other_bank(bench: Bench) -> int:
    """Make a bank of nothing but the injectors that the drill does not use."""
    if not (bench.results / "bank-other.npz").exists():
        scenes: Sequence[Scene] = load_scenes(bench.plans("pool"), bench.rows, SCENE_LEAD)
        region_map = load_map(bench, "1 per hour")
        bank = make_bank(
            injector_of(bench), region_map, scenes, variants=("other",), seed=region_map.provenance.seed
        )
        save_bank(bench, "other", bank)
    return 1


def open_bank(bench: Bench, name: str, left_out: Sequence[str] = ()) -> Bank:
    """Bank without some faults."""
    stored = np.load(bench.results / f"bank-{name}.npz")
    names = stored["names"].tolist()
    kept = [k for k, fault in enumerate(names) if fault not in left_out]
    renumbered = np.zeros(1 + len(names), np.int64)
    renumbered[1 + np.array(kept)] = np.arange(1, 1 + len(kept))
    chosen = renumbered[stored["labels"]] > 0
    labels = renumbered[stored["labels"][chosen]]
    return Bank(tuple(names[k] for k in kept), stored["inputs"][chosen], labels, stored["scenes"][chosen])


def heads() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Heads besides the calibrated one: bank, and faults left out of it."""
    return {f"fold {k}": ("both", names) for k, names in enumerate(folds())} | {OTHER: ("other", ())}


def keep_maps(bench: Bench, head: str) -> int:
    """Set the thresholds of a head, "" for the calibrated one, for both budgets on the rows that tune."""
    last = map_path(bench, list(BUDGETS)[-1], head) if head else tune_path(bench)
    if last.exists():
        return 1
    region_map = load_map(bench, "1 per hour")
    if head:
        region_map = msgspec.structs.replace(region_map, faults=other_head(bench, head))
    said = watch(region_map, pool(bench)["tune"])
    for budget, per_hour in BUDGETS.items():
        evidence = fit_evidence(said.scores, said.overexposed, RATE_HZ, per_hour)
        if not head and budget == "1 per hour":
            same = np.array_equal(evidence.threshold, region_map.evidence.threshold, equal_nan=True)
            assert same, "the rows that tune are not those of the calibration"
        else:
            target = map_path(bench, budget, head)
            save_region_map(msgspec.structs.replace(region_map, evidence=evidence), target)
    if not head:
        for ablation in ABLATIONS:
            _keep_ablation(bench, region_map, said, ablation)
        _keep_light(bench)
        with atomic(tune_path(bench)) as part:
            np.savez(part, guard=said.guard, overexposed=said.overexposed)
    return 1


def _keep_ablation(bench: Bench, region_map: RegionMap, said: Said, ablation: str) -> None:
    scores = said.scores.copy()
    scores[:, [CHANNELS.index(channel) for channel in ABLATIONS[ablation]]] = np.nan
    for budget, per_hour in BUDGETS.items():
        evidence = fit_evidence(scores, said.overexposed, RATE_HZ, per_hour)
        target = map_path(bench, budget, ablation)
        save_region_map(msgspec.structs.replace(region_map, evidence=evidence), target)


def _keep_light(bench: Bench) -> None:
    for budget in BUDGETS:
        region_map = load_map(bench, budget)
        threshold = region_map.evidence.threshold.copy()
        threshold[[CHANNELS.index(channel) for channel in LIGHT_LACKS]] = np.nan
        evidence = msgspec.structs.replace(region_map.evidence, threshold=threshold)
        crossmodal = msgspec.structs.replace(region_map.crossmodal, least_agreement=-np.inf)
        light = msgspec.structs.replace(region_map, evidence=evidence, crossmodal=crossmodal)
        save_region_map(light, map_path(bench, budget, LIGHT))


def other_head(bench: Bench, head: str) -> FaultHead | None:
    bank, left_out = heads()[head]
    clean = np.load(bench.results / "clean.npy")
    return fit_head(open_bank(bench, bank, left_out), clean, seed=bench.plans("pool")[0].seed)


def tune_path(bench: Bench) -> Path:
    """Guards and over-exposed frames of the rows that tune."""
    return bench.results / "tune.npz"


def keep_alarms(bench: Bench, budget: str, part: str) -> int:
    """Count false alarms of a map on the fresh trips or on the pool's rows that judge."""
    target = alarms_path(bench, budget, part)
    if not target.exists():
        rows = fresh(bench) if part == "fresh" else pool(bench)["judge"]
        said = watch(load_map(bench, budget), rows)
        standing = np.array([row.context["speed_mps"] == 0.0 for row in rows])
        with atomic(target.with_suffix(".npz")) as file:
            np.savez(file, guard=said.guard, overexposed=said.overexposed)
        with atomic(target) as file:
            file.write(msgspec.json.encode(alarms_of(said.raised, standing)))
    return 1


@lru_cache(maxsize=1)
def fresh(bench: Bench) -> list[StatRow]:
    """Rows of the fresh trips."""
    return stream_rows(stream_tables(bench.plans("fresh"), bench.rows))


def alarms_path(bench: Bench, budget: str, part: str) -> Path:
    return bench.results / f"alarms-{part}-{budget.replace(' ', '-')}.json"
