"""The fuzzers speak the forms that gateway and functions speak."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from erless.serve.protocol.fast_lane import answer_forms, head_forms, request_forms

FOLDER = Path(__file__).parent
PRINT = r"""
#include <stdio.h>
#include "forms.h"
int main(void) {
    for (int k = 0; k < ALL_FORMS; k++) printf("%s%c", all_forms[k], 0);
    return 0;
}
"""


def test_the_fuzzers_forms_are_those_of_the_fast_lane(tmp_path: Path) -> None:
    source, program = tmp_path / "forms.c", tmp_path / "forms"
    source.write_text(PRINT)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    command = [compiler, "-std=gnu11", f"-I{FOLDER}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    forms = subprocess.check_output([program]).split(b"\0")[:-1]
    answer_heads, float32, float16 = answer_forms(b"ab" * 32)
    assert forms == [*head_forms(b"shard"), *request_forms(), *answer_heads, float32, float16]
