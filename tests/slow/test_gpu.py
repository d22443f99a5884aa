"""What runs on the CPU runs on a GPU."""

import pytest
import torch

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
