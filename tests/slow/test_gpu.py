"""What runs on the CPU runs on a GPU."""

import pytest
import torch

from powerbert_hf import packing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"retention_config": [0.7, 0.4, 0.2], "retention_unit": "fraction"}])
def test_cuda_answers_as_the_cpu_does(host, batch, attention, fields):
    ours = host.make(**fields)
    ours.set_attn_implementation(attention)
    wanted = ours(**batch).logits
    found = ours.cuda()(**{name: values.cuda() for name, values in batch.items()}).logits.cpu()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fields", [{}, {"retention_config": [0.7, 0.4, 0.2], "retention_unit": "fraction"}])
def test_what_is_packed_answers_as_what_is_padded(host, batch, fields, dtype, monkeypatch):
    """By variable-length flash attention, which must have been called."""
    calls, attend = [], packing.varlen_attention
    monkeypatch.setattr(packing, "varlen_attention", lambda *args: calls.append(1) or attend(*args))
    ours = host.make(**fields).to("cuda", dtype)
    inputs = {name: values.cuda() for name, values in batch.items()}
    with torch.no_grad():
        packed = ours(**inputs).logits
        assert len(calls) == 3
        padded = ours(**inputs, output_kept_positions=True).logits
        exact = ours.float()(**inputs, output_kept_positions=True).logits
    assert len(calls) == 3
    # As near to what is exact as the padded path: rounding keeps other word-vectors now and then.
    off = [(found.float() - exact).abs().median() for found in (packed, padded)]
    assert off[0] <= 2 * off[1] + 0.05
