"""A process that compiles grammars to see whether that can be done: what kills or hangs it kills nobody else.

`python -m remuda.engine.grammar_process` reads frames from stdin, see grammar_frames.py: a `Vocabulary`,
then any number of `Grammar`s. It answers each with a `Verdict`, and ends with its stdin. No torch.
"""

import resource
import sys
import threading
from typing import BinaryIO, Final

import msgspec

from remuda.engine.errors import InvalidRequestError
from remuda.engine.grammar import Grammar
from remuda.engine.grammar_compiler import GrammarCompiler, as_lark
from remuda.engine.grammar_frames import HEADER, Verdict, Vocabulary, encode_frame

# Beyond it, memory cannot be had, and the process ends.
_MAX_MEMORY_BYTES: Final = 2 * 2**30
# Half of what the engine's threads have: what passes here does not overflow there.
_STACK_BYTES: Final = 4 * 2**20


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the end of `source`."""
    frame = _read_frame(source)
    if frame is None:
        return
    tokens = msgspec.msgpack.decode(frame, type=Vocabulary).tokens
    compiler = GrammarCompiler(lambda: tokens)
    sink.write(encode_frame(Verdict()))
    sink.flush()
    decoder = msgspec.msgpack.Decoder(Grammar)
    while (frame := _read_frame(source)) is not None:
        sink.write(encode_frame(_judge(compiler, decoder.decode(frame))))
        sink.flush()


def _judge(compiler: GrammarCompiler, grammar: Grammar) -> Verdict:
    try:
        source = as_lark(grammar)
        compiler.matcher(source)
    except InvalidRequestError as error:
        return Verdict(str(error).removeprefix(f"{grammar.param}: "))
    return Verdict(lark=None if source is grammar else source.text)


def _read_frame(source: BinaryIO) -> bytes | None:
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = source.read(length)
    return body if len(body) == length else None


def main() -> int:
    """Serve stdin and stdout, in a thread with a stack of a known size."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
