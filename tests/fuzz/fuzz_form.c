/* Forms: any text against the real forms, and any form. */
#include "fast_lane/form.h"
#include "forms.h"
#include "input.h"

/* What was scanned without a word is written back to the same bytes. */
static void scan(const char *form, const char *text, const char *end) {
    int64_t numbers[8] = {0};
    char out[MOST_HEAD];
    if (!form_check(form, 8, 8)) return;
    const char *stop = form_scan(form, text, end, numbers);
    if (stop == NULL) return;
    REQUIRE(text <= stop && stop <= end);
    if (!form_check(form, 8, 0)) return;
    const char *written = form_fill(form, out, out + MOST_HEAD, numbers, NULL);
    if (written == NULL) REQUIRE(stop - text >= MOST_HEAD - 1);
    else REQUIRE(written - out == stop - text && memcmp(out, text, (size_t)(stop - text)) == 0);
}

/* What was written stays within its room. `ours`: in a real form no number touches a digit, so what
 * was written is scanned back to the same numbers. */
static void fill(const char *form, input_t *input, int ours) {
    int64_t numbers[8], again[8] = {0};
    if (!form_check(form, 8, 8)) return;
    for (int k = 0; k < 8; k++) numbers[k] = any_bits(input, 4);
    const size_t room = (size_t)any_of(input, 0, MOST_HEAD);
    char *out = exactly(room);
    const char *word = any_byte(input) & 1 ? "00-trace" : NULL;
    const char *end = form_fill(form, out, out + room, numbers, word);
    REQUIRE(end == NULL || (out <= end && end <= out + room));
    if (ours && end != NULL) {
        REQUIRE(form_scan(form, out, end, again) == end);
        for (int k = 0; k < 8 && !form_check(form, k, 8); k++) REQUIRE(numbers[k] == again[k]);
    }
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    const uint8_t choice = any_byte(&input);
    if (choice < 2 * ALL_FORMS) {
        const char *form = all_forms[choice / 2];
        if (choice & 1) fill(form, &input, 1);
        else scan(form, (const char *)input.next, (const char *)input.end);
        return 0;
    }
    char *form = exactly((size_t)choice + 1);
    for (int k = 0; k < choice; k++) form[k] = (char)any_byte(&input);
    if (choice & 1) fill(form, &input, 0);
    else scan(form, (const char *)input.next, (const char *)input.end);
    free(form);
    return 0;
}
