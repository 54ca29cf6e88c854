"""Pretend GPUs: memory of the CPU, of which some says that it lies on a GPU.

Where a tensor lies is a matter of its storage, so all its views lie there. Numbers are the CPU's,
bit for bit. What a GPU refuses is refused, and a little more: masks on the CPU that index.
"""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Tensor, aten, CPU = torch.Tensor, torch.ops.aten, torch.device("cpu")
MAY_MIX = ("copy_", "__set__", "_has_compatible_shallow_copy_type", "backward", "grad")
ONLY_ON_THE_CPU = ("numpy", "__array__", "__dlpack__")
WAITING = (
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount,
    aten._unique2, aten.unique_dim, aten.repeat_interleave,
)  # fmt: skip
INDEXING = (aten.index, aten.index_put, aten.index_put_)


def tensors_in(values):
    if isinstance(values, Tensor):
        return [values]
    values = values.values() if isinstance(values, dict) else values
    if not isinstance(values, list | tuple | type({}.values())):
        return []
    return [tensor for each in values for tensor in tensors_in(each)]


class PretendGpus(TorchFunctionMode):
    """Inside the `with` block there are GPUs.

    Attributes:
        waits: each time that the host waited for one in the latest block, by what it did.
    """

    def __init__(self):
        super().__init__()
        self._places = {}

    def __enter__(self):
        self.waits = []
        return super().__enter__()

    def place(self, tensor):
        """Where a tensor lies."""
        if tensor.is_meta:
            return torch.device("meta")
        return self._places.get(tensor.untyped_storage()._cdata, (CPU,))[0]

    def put(self, values, place):
        """Says where tensors lie, unless it is said already."""
        for tensor in tensors_in(values):
            if place.type == "cuda" and not tensor.is_meta:
                storage = tensor.untyped_storage()
                # No other storage gets this number as long as there is a weak reference to it.
                self._places.setdefault(storage._cdata, (place, StorageWeakRef(storage)))
        return values

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return self.place(args[0])
        if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
            return (self.place(args[0]).type == "cuda") == (func == Tensor.is_cuda.__get__)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, *args, **kwargs)
        if func is torch.as_tensor and isinstance(args[0], Tensor):
            return self._moved(Tensor.to, *args, **kwargs)
        tensors = tensors_in((args, kwargs))
        # A single number on the CPU goes with anything.
        places = {self.place(each) for each in tensors if each.dim()}
        places = places or {self.place(each) for each in tensors}
        gpus = [place for place in places if place.type == "cuda"]
        if gpus and name in ONLY_ON_THE_CPU:
            raise TypeError(f"{name} of a tensor on {gpus}: copy it to the CPU first")
        if gpus and len(places) > 1 and name not in MAY_MIX:
            raise RuntimeError(f"{name} of tensors on {places}, which are not the same device")
        place = torch.device(kwargs.get("device") or (gpus or [CPU])[0])
        if place.type == "cuda" and "device" in kwargs:
            place, kwargs["device"] = torch.device("cuda", place.index or 0), CPU
        if not gpus and place.type != "cuda":
            return func(*args, **kwargs)
        if func is Tensor.tolist:
            self.waits.append(name)
        with _Running(self, place):
            return self.put(func(*args, **kwargs), place)

    def _moved(self, func, tensor, *args, **kwargs):
        now, copy, dtype = self.place(tensor), kwargs.pop("copy", False), None
        if func is not Tensor.to:
            place = CPU if func is Tensor.cpu else torch.device("cuda")
        elif args and isinstance(args[0], Tensor):
            place, dtype = self.place(args[0]), args[0].dtype
        else:
            place, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        place = now if place is None else place
        if "meta" in (place.type, now.type):
            return func(tensor, *args, **kwargs)
        if place.type == "cuda":
            place = torch.device("cuda", place.index or 0)
        elif now.type == "cuda":
            self.waits.append("copy to the CPU")
        moved = tensor.to(dtype=dtype or tensor.dtype, copy=copy or place != now)
        return self.put(moved, place)


class _Running(TorchDispatchMode):
    """While something runs on a GPU: what is made of tensors lies where they do."""

    def __init__(self, gpus, place):
        super().__init__()
        self._gpus, self._place = gpus, place

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places = [self._gpus.place(each) for each in tensors_in((args, kwargs))]
        there = [place for place in places if place.type == "cuda"]
        kind = func.overloadpacket
        by_mask = kind in INDEXING and torch.bool in [each.dtype for each in tensors_in(args[1])]
        to_the_cpu = kind is aten.copy_ and places[0] == CPU
        if there and (kind in WAITING or by_mask or to_the_cpu):
            self._gpus.waits.append(str(kind))
        return self._gpus.put(func(*args, **(kwargs or {})), (there or [self._place])[0])
