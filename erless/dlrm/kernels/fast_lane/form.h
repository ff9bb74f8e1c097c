/* Forms: messages between gateway and functions, in which only numbers and words differ
 * (erless/serve/protocol/fast_lane.py).
 *
 * In a form %d is a number >= 0 of 1 to 10 digits, %s a word, that is, whatever stands until the
 * line ends, and %% a percent sign. */
#ifndef ERLESS_FORM_H
#define ERLESS_FORM_H

#include <stdint.h>

enum { MOST_HEAD = 1024 }; /* bytes of a message before its tensors */

/* Whether `form` is one, of at most `numbers` numbers and `words` words. */
int form_check(const char *form, int numbers, int words);

/* Where `text` goes on behind `form`, or NULL where it differs. Fills in `numbers`; words are
 * skipped. */
const char *form_scan(const char *form, const char *text, const char *end, int64_t *numbers);

/* Write `form` with its numbers and `word` to `out`. Returns the end of what was written, or NULL
 * where it does not fit before `end`, or the form has a word and `word` is NULL. */
char *form_fill(const char *form, char *out, const char *end, const int64_t *numbers,
                const char *word);

#endif
