"""The contenders of benchmarks.loaders, one class each; run by it, in the environment that each lives in.

Each is made on a shard directory (litdata on a copy in its own format) and gives
    raw()              one pass in this process, nothing decoded: samples seen
    epoch()            one decoded pass with worker processes: images of each batch, uint8 canvases ready in this process
    resume()           seconds from a loader that is not there to the first batch after 90 % of a pass
Order: ours is shuffled over everything; the others read in their cheapest order, shard after shard.
"""

import io
import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from shards.geometry import PAD_COLOUR, get_mode
from trainer.pixels import decode_image, place

BATCH = 12  # samples; ours takes one packed row
Canvas = npt.NDArray[np.uint8]


def pillow_canvas(data: bytes, mode: str) -> Canvas:
    """As webdataset's and Energon's own decoders read a picture, and as Pillow puts it on a canvas."""
    side = get_mode(mode).side
    return np.asarray(ImageOps.pad(Image.open(io.BytesIO(data)).convert("RGB"), (side, side), color=PAD_COLOUR))


def our_canvas(data: bytes, mode: str) -> Canvas:
    """As this trainer does."""
    return place(decode_image(data), mode)


def stack(images: list[bytes], meta: dict[str, Any], decode: Callable[[bytes, str], Canvas]) -> torch.Tensor:
    """A sample's canvases."""
    found = [decode(data, image["mode"]) for data, image in zip(images, meta["images"])]
    return torch.from_numpy(np.stack(found)) if found else torch.zeros((0, 1024, 1024, 3), dtype=torch.uint8)


def pictures_of(members: dict[str, Any], count: int) -> list[bytes]:
    """The encoded pictures of a sample, in order."""
    return [next(members[key] for key in (f"{index}.jpg", f"{index}.png") if key in members) for index in range(count)]


def from_members(members: dict[str, Any], decode: Callable[[bytes, str], Canvas]) -> torch.Tensor:
    """The canvases of raw tar members."""
    meta = json.loads(members["json"])
    return stack(pictures_of(members, len(meta["images"])), meta, decode)


def seconds_to(batches: Iterator[Any], begun: float) -> float:
    """Until the next batch."""
    next(batches)
    return time.perf_counter() - begun


class Ours:
    """trainer.data."""

    def __init__(self, where: str, workers: int, decode: Callable[[bytes, str], Canvas]) -> None:
        from trainer.data.store import open_directory

        self.workers = workers
        self.directory = open_directory(where)
        self.passes = 0
        self.loader: Any = None

    def raw(self) -> Iterator[int]:
        """Samples a row, parsed and checked against the row table."""
        from shards.reader import parse_row
        from trainer.data.store import Scratch

        scratch = Scratch()
        for row in self.directory.rows["train"]:
            yield len(parse_row(self.directory.store.read_bytes("train", row, scratch), row, "train"))

    def members(self) -> Iterator[int]:
        """As much as the others' raw reading does: tar members, whose JSON and vectors nobody has looked at."""
        from shards import tar
        from trainer.data.store import Scratch

        scratch = Scratch()
        for row in self.directory.rows["train"]:
            data = self.directory.store.read_bytes("train", row, scratch)
            yield sum(member.name.endswith(".json") for member in tar.members(data))

    def open(self) -> tuple[Any, Any]:
        """A loader, and the order of the table."""
        from trainer.data.batch import Rules
        from trainer.data.loader import Loader
        from trainer.data.order import Order

        rows = self.directory.rows["train"]
        loader = Loader([self.directory], rules=Rules.of(self.directory.manifest, "all"), rows=1, workers=self.workers)
        return loader, Order([rows["shard"]], [rows["patches"]], batch_rows=1, seed=0)

    def epoch(self) -> Iterator[int]:
        """With ids, targets, positions and segments, which the others leave to the training process."""
        if self.loader is None:
            self.loader, self.order = self.open()
        start, self.passes = self.passes * self.order.rows, self.passes + 1
        for batch in self.loader.batches([self.order.batch(step) for step in range(start, start + self.order.rows)]):
            yield batch.images

    def resume(self) -> float:
        """Arithmetic: the step's own rows are asked for."""
        begun = time.perf_counter()
        loader, order = self.open()
        at = int(0.9 * order.rows)
        batches = loader.batches([order.batch(step) for step in range(at, order.rows)])
        took = seconds_to(batches, begun)
        batches.close()
        loader.close()
        return took


class WebDataset:
    """webdataset's own pipeline and loader. It has no state to resume from: what was seen is read again and thrown away."""

    def __init__(self, where: str, workers: int, decode: Callable[[bytes, str], Canvas]) -> None:
        self.tars, self.workers, self.decode = sorted(map(str, Path(where).glob("train-*.tar"))), workers, decode
        self.loader: Any = None

    def samples(self) -> Any:
        """Raw members."""
        import webdataset

        return webdataset.WebDataset(self.tars, shardshuffle=False, empty_check=False)

    def raw(self) -> Iterator[int]:
        """Nothing decoded."""
        for _ in self.samples():
            yield 1

    def open(self, skip: int = 0) -> Any:
        """A loader; each worker leaves out its share of `skip`."""
        import webdataset

        share = skip // max(1, self.workers)
        dataset = self.samples().compose(lambda source: islice(source, share, None)) if skip else self.samples()
        dataset = dataset.map(lambda members: from_members(members, self.decode)).batched(BATCH, collation_fn=torch.cat)
        return webdataset.WebLoader(dataset, batch_size=None, num_workers=self.workers, persistent_workers=not skip)

    def epoch(self) -> Iterator[int]:
        """See above."""
        if self.loader is None:
            self.loader = self.open()
        yield from map(len, self.loader)

    def resume(self) -> float:
        """By replay."""
        skip = int(0.9 * sum(self.raw()))
        begun = time.perf_counter()
        return seconds_to(iter(self.open(skip)), begun)


class Energon:
    """Megatron-Energon over the same directory, which has its .nv-meta."""

    def __init__(self, where: str, workers: int, decode: Callable[[bytes, str], Canvas]) -> None:
        self.where, self.workers, self.decode = where, workers, decode
        infos = json.loads((Path(where) / ".nv-meta" / ".info.json").read_text("utf-8"))
        self.samples = sum(count for name, count in infos["shard_counts"].items() if name.startswith("train"))
        self.running: Any = None

    def open(self, workers: int, decode: Callable[[bytes, str], Canvas] | None, *, savable: bool = False) -> Any:
        """Its loader; `decode` None leaves the members as they are."""
        from megatron.energon import (
            Cooker,
            DefaultTaskEncoder,
            WorkerConfig,
            get_loader,
            get_savable_loader,
            get_train_dataset,
            stateless,
        )
        from megatron.energon.flavors import CaptioningSample

        @stateless  # type: ignore[untyped-decorator]
        def cook(members: Any) -> Any:
            image = torch.zeros(0) if decode is None else from_members(members, decode)
            return CaptioningSample(__key__=members["__key__"], __restore_key__=members["__restore_key__"], __subflavors__={},
                                    image=image, caption="")

        class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
            """Samples to batches of stacked canvases."""

            decoder = None
            cookers = (Cooker(cook),)

            def batch(self, samples: list[Any]) -> Any:
                return torch.cat([one.image for one in samples])

        config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
        dataset = get_train_dataset(self.where, worker_config=config, batch_size=BATCH, shuffle_buffer_size=None,
                                    max_samples_per_sequence=None, task_encoder=Encoder(), repeat=True)
        return (get_savable_loader if savable else get_loader)(dataset, worker_config=config)

    def raw(self) -> Iterator[int]:
        """One process, nothing decoded."""
        for _ in islice(self.open(0, None), self.samples // BATCH):
            yield BATCH

    def epoch(self) -> Iterator[int]:
        """As many batches as a pass has: its sequence is endless."""
        if self.running is None:
            self.running = iter(self.open(self.workers, self.decode))
        yield from map(len, islice(self.running, self.samples // BATCH))

    def resume(self) -> float:
        """By its saved state."""
        first = self.open(self.workers, self.decode, savable=True)
        for _ in islice(iter(first), int(0.9 * self.samples / BATCH)):
            pass
        state = first.save_state_rank()
        begun = time.perf_counter()
        second = self.open(self.workers, self.decode, savable=True)
        second.restore_state_rank(state)
        return seconds_to(iter(second), begun)


class HuggingFace:
    """datasets: load_dataset on the directory, streamed, in a torch DataLoader. Its tar reader decodes json and npy itself."""

    def __init__(self, where: str, workers: int, decode: Callable[[bytes, str], Canvas]) -> None:
        from datasets import load_dataset

        self.workers, self.decode = workers, decode
        self.dataset = load_dataset(where, split="train", streaming=True).decode(False)
        self.loader: Any = None

    def raw(self) -> Iterator[int]:
        """No picture decoded."""
        for _ in self.dataset:
            yield 1

    def collate(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        """Canvases of a batch."""
        found = []
        for sample in samples:
            pictures = [next(sample[key]["bytes"] for key in (f"{index}.jpg", f"{index}.png") if sample.get(key))
                        for index in range(len(sample["json"]["images"]))]
            found.append(stack(pictures, sample["json"], self.decode))
        return torch.cat(found)

    def open(self, workers: int) -> Any:
        """A DataLoader."""
        return torch.utils.data.DataLoader(self.dataset, batch_size=BATCH, num_workers=workers, collate_fn=self.collate,
                                           persistent_workers=workers > 0)

    def epoch(self) -> Iterator[int]:
        """See above."""
        if self.loader is None:
            self.loader = self.open(self.workers)
        yield from map(len, self.loader)

    def resume(self) -> float:
        """By its state_dict, in this process: a DataLoader's workers keep theirs to themselves."""
        samples = sum(self.raw())
        for _ in islice(self.dataset, int(0.9 * samples)):
            pass
        state = self.dataset.state_dict()
        begun = time.perf_counter()
        self.dataset.load_state_dict(state)
        return seconds_to(iter(self.open(0)), begun)


class LitData:
    """litdata's StreamingDataset over a copy that its optimize has written."""

    def __init__(self, where: str, workers: int, decode: Callable[[bytes, str], Canvas]) -> None:
        self.where, self.workers, self.decode = litdata_copy(where), workers, decode
        self.loader: Any = None

    def samples(self) -> Any:
        """Raw samples."""
        from litdata import StreamingDataset

        return StreamingDataset(str(self.where), shuffle=False, drop_last=False)

    def raw(self) -> Iterator[int]:
        """Nothing decoded."""
        for _ in self.samples():
            yield 1

    def collate(self, samples: list[dict[str, Any]]) -> torch.Tensor:
        """Canvases of a batch."""
        import pickle

        return torch.cat([stack(pickle.loads(sample["images"]), json.loads(sample["json"]), self.decode)  # noqa: S301
                          for sample in samples])

    def open(self) -> Any:
        """Its loader."""
        from litdata import StreamingDataLoader

        return StreamingDataLoader(self.samples(), batch_size=BATCH, num_workers=self.workers, collate_fn=self.collate,
                                   persistent_workers=True)

    def epoch(self) -> Iterator[int]:
        """See above."""
        if self.loader is None:
            self.loader = self.open()
        yield from map(len, self.loader)

    def resume(self) -> float:
        """By its state_dict."""
        first = self.open()
        batches = iter(first)
        for _ in islice(batches, int(0.9 * len(first))):
            pass
        state = first.state_dict()
        begun = time.perf_counter()
        second = self.open()
        second.load_state_dict(state)
        return seconds_to(iter(second), begun)


def litdata_copy(where: str) -> Path:
    """The directory's samples in litdata's format, made once beside it."""
    import pickle

    folder = Path(where).with_name(Path(where).name + "-litdata")
    if not (folder / "index.json").exists():
        from litdata import optimize

        optimize(fn=_LitSamples(pickle.dumps), inputs=sorted(map(str, Path(where).glob("train-*.tar"))), output_dir=str(folder),
                 chunk_bytes="16MB", num_workers=1, verbose=False)
    return folder


class _LitSamples:
    """What optimize calls for each tar."""

    def __init__(self, dumps: Callable[[Any], bytes]) -> None:
        self.dumps = dumps

    def __call__(self, tar: str) -> Iterator[dict[str, bytes]]:
        """The same members, pictures as one field: litdata wants the same structure of every sample."""
        import webdataset

        for members in webdataset.WebDataset([tar], shardshuffle=False, empty_check=False):
            pictures = pictures_of(members, len(json.loads(members["json"])["images"]))
            yield {"json": members["json"], "ids": members["ids.npy"], "mask": members["mask.npy"], "images": self.dumps(pictures)}


class Dali:
    """NVIDIA DALI without a GPU: its webdataset reader, its decoder, its threads. The first picture of a sample only."""

    def __init__(self, where: str, workers: int, decode: Callable[[bytes, str], Canvas]) -> None:
        self.tars, self.workers = sorted(map(str, Path(where).glob("train-*.tar"))), workers
        self.indexes = [tar.removesuffix(".tar") + ".idx" for tar in self.tars]
        self.running: Any = None

    def open(self, *, threads: int, decoded: bool, checkpoint: str | None = None, savable: bool = False) -> Any:
        """A built pipeline."""
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def  # type: ignore[untyped-decorator]
        def graph() -> Any:
            *members, pictures = fn.readers.webdataset(
                paths=self.tars, index_paths=self.indexes, ext=["json", "ids.npy", "mask.npy", "0.jpg;0.png"],
                missing_component_behavior="skip", name="reader", random_shuffle=False)
            if not decoded:
                return (*members, pictures)
            pictures = fn.decoders.image(pictures, device="cpu", output_type=types.RGB)
            pictures = fn.resize(pictures, size=(1024, 1024), mode="not_larger")
            return fn.crop(pictures, crop=(1024, 1024), out_of_bounds_policy="pad", fill_values=127.0)

        made = graph(batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2,
                     **({"enable_checkpointing": True, "checkpoint": checkpoint} if savable else {}))
        made.build()
        return made

    def batches(self, pipeline: Any) -> int:
        """Of a pass."""
        return int(pipeline.reader_meta("reader")["epoch_size"]) // BATCH

    def raw(self) -> Iterator[int]:
        """Nothing decoded, one thread."""
        pipeline = self.open(threads=1, decoded=False)
        for _ in range(self.batches(pipeline)):
            yield len(pipeline.run()[0])

    def epoch(self) -> Iterator[int]:
        """See above."""
        if self.running is None:
            self.running = self.open(threads=self.workers, decoded=True)
        for _ in range(self.batches(self.running)):
            yield len(self.running.run()[0].as_array())

    def resume(self) -> float:
        """By its checkpoint."""
        first = self.open(threads=self.workers, decoded=True, savable=True)
        for _ in range(int(0.9 * self.batches(first))):
            first.run()
        state = first.checkpoint()
        begun = time.perf_counter()
        self.open(threads=self.workers, decoded=True, checkpoint=state, savable=True).run()
        return time.perf_counter() - begun


LANES: dict[str, Any] = {"ours": Ours, "webdataset": WebDataset, "Energon": Energon, "litdata": LitData, "DALI": Dali,
                         "datasets": HuggingFace}
DECODERS: dict[str, Callable[[bytes, str], Canvas]] = {"Pillow": pillow_canvas, "ours": our_canvas}
