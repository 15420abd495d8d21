"""The compiled side of a team: its threads wait inside compiled code, where no interpreter lock slows them down.

Handing a product to a thread through Python takes tens of microseconds; many a product of a decode step takes less.
Here a thread looks at one word of memory until work appears, so a product starts within about a microsecond. A thread
that has seen nothing for a while parks: it returns to Python and waits there without using its core.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from llvmlite import ir

from ternary_kernels.memory import aligned
from ternary_kernels.native import compiler
from ternary_kernels.native.emit import I32, I64, POINTER, Emitter, Value, Variable
from ternary_kernels.native.isa import PATHS

_WORDS = 8  # of a cache line: what one thread writes shares no line with what another does
_GENERATION = 0
_TASK = _WORDS  # function, arguments
_PARKED = 2 * _WORDS
_MEMBER = 3 * _WORDS  # per member: the generation it has done, and whether it is awake
_PATIENCE = 20_000
"""Pauses until a member parks: about half a millisecond."""
_PAUSES_PER_YIELD = 256
"""Where there are more threads than cores, the one that is waited for must get its turn."""

Entry = Callable[[int, int, int], None]
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def callable_at(address: int) -> Entry:
    """A compiled kernel as a Python function ``(address of arguments, member, members)``; it lets the lock go."""
    return _ENTRY(address)


class Crew:
    """What the members of one team share.

    Args:
        members: How many they are, the caller included.
        wake: Has member i (from 1) call ``serve(i)`` soon, on its own thread.
    """

    def __init__(self, members: int, wake: Callable[[int], None]) -> None:
        self._members = members
        self._wake = wake
        words = _MEMBER + members * _WORDS
        memory = aligned(8 * words)
        memory[:] = 0
        # Not an array of numpy's, which takes three times as long to set two words of.
        self._words = (ctypes.c_int64 * words).from_buffer(memory.data)
        self._address = ctypes.addressof(self._words)
        self._serve, self._dispatch, self._finish, self._release = _functions()
        self._entries: dict[int, Entry] = {}

    def run(self, kernel: int, arguments: int) -> None:
        """Call the kernel at an address with the arguments at another on all members, and return when all are done."""
        if self._members == 1:
            entry = self._entries.get(kernel)
            if entry is None:
                entry = self._entries[kernel] = callable_at(kernel)
            entry(arguments, 0, 1)
            return
        self._words[_TASK] = kernel
        self._words[_TASK + 1] = arguments
        self._dispatch(self._address, 0, self._members)
        if self._words[_PARKED]:
            for member in range(1, self._members):
                if not self._words[_MEMBER + member * _WORDS + 1]:
                    self._wake(member)
            self._finish(self._address, 0, self._members)

    def serve(self, member: int) -> None:
        """Work until there has been nothing to do for a while, or until ``release``."""
        self._serve(self._address, member, self._members)

    def release(self) -> None:
        """Have all members return to Python."""
        self._words[_TASK] = 0
        self._release(self._address, 0, self._members)


@cache
def _functions() -> tuple[Entry, Entry, Entry, Entry]:
    kernels = {"serve": _build_serve, "dispatch": _build_dispatch, "finish": _call_and_wait, "release": _publish}
    addresses = compiler.load("crew", kernels, PATHS[-1])
    serve, dispatch, finish, release = (callable_at(addresses[name]) for name in kernels)
    return serve, dispatch, finish, release


def _word(emitter: Emitter, index: int | Value) -> Value:
    """Address of a word of the state."""
    return emitter.at(emitter.arguments, emitter.mul(index, 8))


def _member_word(emitter: Emitter, member: Value, index: int) -> Value:
    return _word(emitter, emitter.add(emitter.mul(member, _WORDS), _MEMBER + index))


def _read(emitter: Emitter, word: Value) -> Value:
    return emitter.builder.load_atomic(word, "seq_cst", 8, typ=I64)


def _write(emitter: Emitter, word: Value, value: int | Value) -> None:
    # llvmlite stores atomically through typed pointers only; an exchange is what such a store is on x86 anyway.
    emitter.builder.atomic_rmw("xchg", word, emitter.index(value), "seq_cst")


def _publish(emitter: Emitter) -> None:
    """Tell the members that there is a new task."""
    generation = _word(emitter, _GENERATION)
    _write(emitter, generation, emitter.add(_read(emitter, generation), 1))


def _build_dispatch(emitter: Emitter) -> None:
    """Publish; if all members are awake, do the caller's part and wait for theirs; else say how many are parked."""
    _publish(emitter)
    parked = Variable(emitter, emitter.index(0))
    with emitter.loop(1, emitter.members) as member:
        awake = _read(emitter, _member_word(emitter, member, 1))
        parked.set(emitter.add(parked.get(), emitter.builder.sub(emitter.index(1), awake)))
    _write(emitter, _word(emitter, _PARKED), parked.get())
    with emitter.when(parked.get(), "==", 0):
        _call_and_wait(emitter)


def _call_and_wait(emitter: Emitter) -> None:
    """Do the caller's part, and wait until every member has done its own."""
    _call_task(emitter)
    generation = _read(emitter, _word(emitter, _GENERATION))
    with emitter.loop(1, emitter.members) as member:
        done = _member_word(emitter, member, 0)
        _spin_until(emitter, lambda: emitter.builder.icmp_signed("==", _read(emitter, done), generation), None)


def _call_task(emitter: Emitter) -> None:
    builder = emitter.builder
    function, arguments = (_read(emitter, _word(emitter, _TASK + index)) for index in (0, 1))
    signature = ir.FunctionType(ir.VoidType(), [POINTER, I64, I64])
    task = builder.inttoptr(function, signature.as_pointer())
    builder.call(task, [builder.inttoptr(arguments, POINTER), emitter.member, emitter.members])


def _build_serve(emitter: Emitter) -> None:
    """Wait for a new generation, do this member's part of its task, and again; park after a while or if told to."""
    builder = emitter.builder
    generation, function = _word(emitter, _GENERATION), _word(emitter, _TASK)
    done, awake = (_member_word(emitter, emitter.member, index) for index in (0, 1))
    last = Variable(emitter, _read(emitter, done))

    def is_new() -> Value:
        return builder.icmp_signed("!=", _read(emitter, generation), last.get())

    wait, work, call, park, leave = (
        builder.append_basic_block(name) for name in ("wait", "work", "call", "park", "leave")
    )
    builder.branch(wait)
    builder.position_at_end(wait)
    _write(emitter, awake, 1)
    _spin_until(emitter, is_new, _PATIENCE)
    builder.cbranch(is_new(), work, park)
    builder.position_at_end(work)
    last.set(_read(emitter, generation))
    builder.cbranch(builder.icmp_signed("!=", _read(emitter, function), emitter.index(0)), call, park)
    builder.position_at_end(call)
    _call_task(emitter)
    _write(emitter, done, last.get())
    builder.branch(wait)
    # A task published between the last look and this mark would be waited for by a caller who saw the member awake,
    # so it looks once more. (A caller who saw it parked has it called again, to no harm.)
    builder.position_at_end(park)
    _write(emitter, awake, 0)
    builder.cbranch(is_new(), wait, leave)
    builder.position_at_end(leave)
    _write(emitter, done, last.get())


def _spin_until(emitter: Emitter, holds: Callable[[], Value], pauses: int | None) -> None:
    """Wait until a condition holds, or for that many pauses."""
    builder = emitter.builder
    spins = Variable(emitter, emitter.index(0))
    test, pause, give_way, after = (builder.append_basic_block(name) for name in ("test", "pause", "give_way", "after"))
    builder.branch(test)
    builder.position_at_end(test)
    over = holds()
    if pauses is not None:
        over = builder.or_(over, builder.icmp_signed(">=", spins.get(), emitter.index(pauses)))
    builder.cbranch(over, after, pause)
    builder.position_at_end(pause)
    emitter.pause()
    spins.set(emitter.add(spins.get(), 1))
    turn = builder.and_(spins.get(), emitter.index(_PAUSES_PER_YIELD - 1))
    builder.cbranch(builder.icmp_signed("==", turn, emitter.index(0)), give_way, test)
    builder.position_at_end(give_way)
    emitter.call("sched_yield", I32)
    builder.branch(test)
    builder.position_at_end(after)
