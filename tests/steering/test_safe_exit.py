"""How early the visual tokens may leave: the rule by hand, and models of which it is known."""

from dataclasses import replace

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering.safe_exit import earliest_safe_exit, exit_safe


def scores(*best: int) -> torch.Tensor:
    """Logits whose best token at each place is given, 3 above the others."""
    return torch.nn.functional.one_hot(torch.tensor(best), 4).float() * 3


def test_an_exit_is_safe_when_the_best_tokens_and_the_loss_stay():
    answer = torch.tensor([0, 1, 2])
    plain = scores(0, 1, 2)
    safe, agreement, loss, full = exit_safe(plain, plain, answer)
    assert (
        safe
        and agreement == 1
        and loss == full == pytest.approx(torch.log(1 + 3 * torch.exp(torch.tensor(-3.0))).item())
    )
    assert not exit_safe(plain, scores(0, 1, 3), answer)[0]  # two of three agree
    assert exit_safe(plain, plain * 2, answer)[0]  # surer
    assert not exit_safe(plain, plain * 0.9, answer)[0]  # the same tokens, a loss more than 3 % higher
    assert exit_safe(plain, plain * 0.995, answer)[0]
    certain = scores(0, 1, 2) * 1000
    assert exit_safe(certain, certain, answer)[2:] == (0, 0) and exit_safe(certain, certain, answer)[0]
    many = torch.zeros(200, dtype=torch.long)
    one = scores(*([0] * 199), 1)
    assert exit_safe(scores(*[0] * 200) * 1e-3, one * 1e-3, many)[1] == 0.995


def test_a_model_whose_later_layers_ignore_the_picture_lets_it_leave_before_them():
    vlm = open_vlm("organism")
    for block in vlm.anatomy.blocks[2:]:
        block.self_attn.o_proj.weight.data.zero_()  # no position learns anything from another one
    samples = [s for s in scene_samples(6, "test") if s.answer]
    found = earliest_safe_exit(vlm, samples, batch_size=4)
    assert (found.samples["earliest_layer"] <= 1).all() and found.samples["sample"].tolist() == [s.id for s in samples]
    assert found.layers["safe_share"].tolist()[1:] == [1, 1, 1]
    assert (found.layers["n"] == len(samples)).all() and (
        found.layers["low"] <= found.layers["safe_share"] + 1e-9
    ).all()


def test_the_last_layer_is_always_safe_and_batches_do_not_matter():
    vlm = open_vlm("organism")
    samples = list(scene_samples(5, "test"))
    one, several = (earliest_safe_exit(vlm, samples, batch_size=n) for n in (1, 5))
    assert (one.samples["earliest_layer"] <= 3).all()
    assert one.layers["safe_share"].iloc[-1] == 1 and one.layers["agreement"].iloc[-1] == 1
    assert one.samples["earliest_layer"].tolist() == several.samples["earliest_layer"].tolist()
    torch.testing.assert_close(
        torch.tensor(one.layers["loss_nats"].to_numpy()),
        torch.tensor(several.layers["loss_nats"].to_numpy()),
        atol=1e-4,
        rtol=1e-3,
    )


def test_samples_without_answers_are_refused():
    vlm = open_vlm("organism")
    sample = replace(next(iter(scene_samples(1, "test"))), answer=None)
    with pytest.raises(UserError, match=f"sample {sample.id} has no answer"):
        earliest_safe_exit(vlm, [sample])
    with pytest.raises(UserError, match="no samples"):
        earliest_safe_exit(vlm, [])
