/* Compare text with a form; write a form. */
#include "fast_lane/form.h"

#include <stddef.h>
#include <string.h>

enum { MOST_DIGITS = 10 };

const char *form_scan(const char *form, const char *text, const char *end, int64_t *numbers) {
    for (; *form; form++) {
        if (form[0] != '%' || *++form == '%') {
            if (text == end || *text++ != *form) return NULL;
            continue;
        }
        const char *first = text;
        if (*form == 's') {
            while (text < end && *text >= ' ' && *text <= '~') text++;
            continue;
        }
        int64_t number = 0;
        while (text < end && text - first < MOST_DIGITS && *text >= '0' && *text <= '9')
            number = 10 * number + (*text++ - '0');
        if (text == first || (*first == '0' && text - first > 1)) return NULL;
        *numbers++ = number;
    }
    return text;
}

/* Copy `text` to `out`, if there is room. */
static char *append(char *out, const char *end, const char *text, size_t size) {
    if (out == NULL || size >= (size_t)(end - out)) return NULL;
    memcpy(out, text, size);
    return out + size;
}

static char *append_number(char *out, const char *end, int64_t number) {
    char digits[24], *first = digits + sizeof(digits);
    uint64_t left = (uint64_t)number;
    do *--first = (char)('0' + left % 10);
    while (left /= 10);
    return append(out, end, first, (size_t)(digits + sizeof(digits) - first));
}

char *form_fill(const char *form, char *out, const char *end, const int64_t *numbers,
                const char *word) {
    while (*form && out) {
        const char *stop = strchr(form, '%');
        if (stop == NULL) return append(out, end, form, strlen(form));
        out = append(out, end, form, (size_t)(stop - form));
        if (stop[1] == 's') out = word ? append(out, end, word, strlen(word)) : NULL;
        else if (stop[1] == 'd') out = append_number(out, end, *numbers++);
        else out = append(out, end, stop + 1, 1);
        form = stop + 2;
    }
    return out;
}

int form_check(const char *form, int numbers, int words) {
    for (; *form; form++) {
        if (form[0] != '%') continue;
        form++;
        if (*form != 'd' && *form != 's' && *form != '%') return 0;
        numbers -= *form == 'd';
        words -= *form == 's';
    }
    return numbers >= 0 && words >= 0;
}
