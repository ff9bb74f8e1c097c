/* Forms: what gateway and functions say to each other (erless/serve/lane.py). */
#include <stdio.h>

#include "kernels.h"

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

char *form_fill(const char *form, char *out, const char *end, const int64_t *numbers,
                const char *word) {
    for (; *form; form++) {
        int size = 1;
        if (form[0] != '%' || *++form == '%') {
            if (out < end) *out = *form;
        } else if (*form == 's') size = snprintf(out, (size_t)(end - out), "%s", word);
        else size = snprintf(out, (size_t)(end - out), "%lld", (long long)*numbers++);
        if (size >= end - out) return NULL;
        out += size;
    }
    return out;
}

int form_check(const char *form, int numbers) {
    for (; *form; form++) {
        if (form[0] != '%') continue;
        form++;
        if (*form != 'd' && *form != 's' && *form != '%') return 0;
        numbers -= *form == 'd';
    }
    return numbers >= 0;
}
