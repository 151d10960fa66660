"""The model that the fakes pretend to serve. Imports little: stub processes start with it."""

from remuda.engine.config import EngineInfo

SPECIALS = ["<bos>", "<user>", "<assistant>", "<end>"]
BOS, USER, ASSISTANT, END = range(4)
VOCAB_SIZE = len(SPECIALS) + 256

INFO = EngineInfo(
    model="fake",
    model_type="longhorn",
    num_parameters=1,
    num_layers=4,
    hidden_size=32,
    device="cpu",
    backend="cpu",
    dtype="float32",
    state_dtype="float32",
    num_slots=64,
    slot_bytes=1000,
    vocab_size=VOCAB_SIZE,
    max_batch_tokens=512,
    prefill_chunk=256,
    max_queue=64,
    eos_token_ids=(END,),
    bos_token_id=BOS,
    load_seconds=0.1,
    weights_fingerprint="0123456789abcdef",
)
