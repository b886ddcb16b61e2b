"""``torch.distributed.checkpoint`` over our format: its API and planners, our files.

    dcp.save(state, storage_writer=Writer("/data/run7", step=100))
    dcp.load(state, storage_reader=Reader("/data/run7"))

``dcp.async_save`` works too. A ``Checkpointer`` reads what they write, and they read what it writes.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeAlias, cast

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from tlaunch.checkpoint import catalog, dtypes
from tlaunch.checkpoint.arguments import step_of
from tlaunch.checkpoint.commit import commit, write_buffers
from tlaunch.checkpoint.errors import CheckpointError, Unusable
from tlaunch.checkpoint.files import Files
from tlaunch.checkpoint.layout import DCP_PATHS as PATHS
from tlaunch.checkpoint.layout import Address, is_reserved
from tlaunch.checkpoint.manifest import Manifest, Tensor, merge
from tlaunch.checkpoint.memory import memory_of, plain
from tlaunch.checkpoint.places import open_files
from tlaunch.checkpoint.region import Region
from tlaunch.checkpoint.resharding import Wanted, load
from tlaunch.checkpoint.shard import Piece, arrange, described
from tlaunch.checkpoint.takeover import take_over
from tlaunch.checkpoint.values import Json, from_json, to_json

Path: TypeAlias = "str | os.PathLike[str]"
Anything: TypeAlias = Any


class Writer(StorageWriter):
    """Writes one checkpoint below ``path``. The coordinator takes a generation, and commits."""

    def __init__(self, path: Path, step: int) -> None:
        self._files = open_files(path)
        self._step = step_of(step)

    def reset(self, checkpoint_id: Path | None = None) -> None:
        """Begin another save, below ``checkpoint_id`` if that is given."""
        if checkpoint_id is not None:
            self._files = open_files(checkpoint_id)

    def set_up_storage_writer(
        self,
        is_coordinator: bool,  # noqa: FBT001 - torch's
        *args: Anything,
        **kwargs: Anything,
    ) -> None:
        """Called by torch on every rank.

        Raises:
            Unusable: torch is to plan without collectives; then nobody would commit.
        """
        del is_coordinator, args
        if not kwargs.get("use_collectives", True):
            raise Unusable("dcp.save: use_collectives=False is not supported; expected True, or a Checkpointer")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Called by torch on every rank.

        Raises:
            Unusable: a name is taken.
        """
        taken = next((item.index.fqn for item in plan.items if is_reserved(item.index.fqn)), None)
        if taken is not None:
            raise Unusable(f"{taken}: names that start so are taken; expected another one in the state")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Called by torch on the coordinator: take the path over, and tell all ranks what they write."""
        generation = take_over(self._files, {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()})
        blank = Manifest(
            step=self._step,
            generation=generation,
            world=len(plans),
            ranks=(),
            created=_now(),
            software={"tlaunch": version("tlaunch"), "torch": torch.__version__},
        )
        return [replace(plan, storage_data=replace(blank, ranks=(rank,))) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Called by torch on every rank: write the shard."""
        blank: Manifest = plan.storage_data
        (rank,) = blank.ranks
        values: dict[str, Json] = {}
        kept: list[tuple[Piece, torch.Tensor]] = []
        results: list[WriteResult] = []
        for item in plan.items:
            if item.type is WriteItemType.BYTE_IO:
                values[item.index.fqn] = _value(item, planner)
                results.append(WriteResult(item.index, 0, None))
            else:
                kept.append(_tensor(item, planner))
                results.append(WriteResult(item.index, len(kept[-1][0].data), None))
        pieces = [piece for piece, _ in kept]
        layout = arrange(pieces)
        buffers: list[bytes | memoryview] = [layout.header, *(piece.data for piece, _ in layout.boxes)]
        file = write_buffers(self._files, Address(blank.generation, blank.step), rank, buffers)
        part = replace(blank, files=(file,), tensors=described(layout.boxes), values=values)
        done: Future[list[WriteResult]] = Future()
        done.set_result([*results, WriteResult(MetadataIndex(""), 0, part)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called by torch on the coordinator: commit."""
        parts = [
            result.storage_data for said in results for result in said if isinstance(result.storage_data, Manifest)
        ]
        whole = merge(parts)
        paths = metadata.planner_data
        values = {**whole.values, PATHS: to_json(paths, PATHS)} if isinstance(paths, dict) else whole.values
        commit(self._files, replace(whole, values=values))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path) -> bool:
        """Whether torch may choose this writer by itself: never."""
        del checkpoint_id
        return False


def _value(item: WriteItem, planner: SavePlanner) -> Json:
    data = planner.resolve_data(item)
    assert isinstance(data, io.BytesIO)
    data.seek(0)
    # torch pickles values for writers. These bytes never left this process, and go no further.
    return to_json(torch.load(data, weights_only=False), item.index.fqn)


def _tensor(item: WriteItem, planner: SavePlanner) -> tuple[Piece, torch.Tensor]:
    """Return a piece, and the tensor that holds its bytes."""
    data = planner.resolve_data(item)
    described = item.tensor_data
    assert isinstance(data, torch.Tensor)
    assert described is not None
    local = plain(data)
    region = Region(tuple(described.chunk.offsets), tuple(described.chunk.sizes))
    dtype = dtypes.name_of(str(local.dtype), item.index.fqn)
    return Piece(item.index.fqn, dtype, tuple(described.size), region, memory_of(local)), local


class Reader(StorageReader):
    """Reads a checkpoint below ``path``: the newest, or that of ``step``. Each rank reads only what it needs."""

    def __init__(self, path: Path, step: int | None = None) -> None:
        self._files = open_files(path)
        self._step = None if step is None else step_of(step)
        self._found: tuple[Files, Address, Manifest] | None = None
        self._failed: CheckpointError | None = None

    def reset(self, checkpoint_id: Path | None = None) -> None:
        """Begin another load, from ``checkpoint_id`` if that is given."""
        if checkpoint_id is not None:
            self._files = open_files(checkpoint_id)
        self._found = self._failed = None

    def read_metadata(self, *args: Anything, **kwargs: Anything) -> Metadata:
        """Return what there is, as torch describes it: nothing, where ``set_up_storage_reader`` will say why.

        From here torch would log each error with its traceback, and only say that there is no metadata.
        """
        del args, kwargs
        try:
            _, _, manifest = self._checkpoint()
        except CheckpointError as error:
            self._failed = error
            return Metadata({}, planner_data={})
        described: dict[str, STORAGE_TYPES] = {name: _described(at) for name, at in manifest.tensors.items()}
        described |= {name: BytesStorageMetadata() for name in manifest.values if name != PATHS}
        paths = (
            from_json(manifest.values[PATHS], PATHS)
            if PATHS in manifest.values
            else {name: (name,) for name in described}
        )
        return Metadata(described, planner_data=paths)

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: FBT001 - torch's
        *args: Anything,
        **kwargs: Anything,
    ) -> None:
        """Called by torch on every rank.

        Raises:
            CheckpointError: there is no checkpoint, or none that can be read.
        """
        if self._failed is not None:
            raise self._failed

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Called by torch on every rank."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Called by torch on the coordinator: all ranks read what it reads, though a newer one may come meanwhile."""
        _, address, _ = self._checkpoint()
        return [replace(plan, storage_data=address) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Called by torch on every rank. Nothing is given to the planner before all of it has been checked."""
        files, address, manifest = self._checkpoint()
        if isinstance(plan.storage_data, Address) and plan.storage_data != address:
            address = plan.storage_data
            manifest = catalog.manifest_of(files, address)
        tensors = [item for item in plan.items if item.type is LoadItemType.TENSOR]
        boxes = load(files, address, manifest, [_wanted(item) for item in tensors])
        for item, box in zip(tensors, boxes, strict=True):
            target = planner.resolve_tensor(item).detach()
            target.copy_(box)
            planner.commit_tensor(item, target)
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                name = item.storage_index.fqn
                data = io.BytesIO()
                torch.save(from_json(manifest.values[name], name), data)  # the planner loads it at once
                data.seek(0)
                planner.load_bytes(item, data)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _checkpoint(self) -> tuple[Files, Address, Manifest]:
        if self._found is None:
            address = catalog.find(self._files, self._step)
            if address is None:
                raise Unusable(f"{self._files.root}: there is no checkpoint; expected the path that a job saves to")
            self._found = self._files, address, catalog.manifest_of(self._files, address)
        return self._found

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path) -> bool:
        """Whether torch may choose this reader by itself: never."""
        del checkpoint_id
        return False


def _described(tensor: Tensor) -> TensorStorageMetadata:
    dtype = cast("torch.dtype", getattr(torch, dtypes.torch_name(tensor.dtype)))
    chunks = [ChunkStorageMetadata(torch.Size(at.region.offset), torch.Size(at.region.shape)) for at in tensor.slices]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(tensor.shape), chunks)


def _wanted(item: ReadItem) -> Wanted:
    chunk: Sequence[int] = item.storage_index.offset or (0,) * len(item.lengths)
    offset = tuple(a + b for a, b in zip(chunk, item.storage_offsets, strict=True))
    return Wanted(item.storage_index.fqn, Region(offset, tuple(item.lengths)))


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
