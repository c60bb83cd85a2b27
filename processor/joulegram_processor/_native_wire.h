/* What is known of the messages of OTLP's traces, by number of field; see _native_wire.c. */

#ifndef JOULEGRAM_NATIVE_WIRE_H
#define JOULEGRAM_NATIVE_WIRE_H

#include "_native.h"

/* What a field of a message is: a scalar, or a message by its row in FIELDS. */
enum {
    NONE, VARINT, FIXED64, FIXED32, BYTES, TEXT,
    RESOURCE_SPANS, RESOURCE, SCOPE_SPANS, SCOPE, SPAN, EVENT, LINK, STATUS, PAIR, VALUE, ARRAY, PAIRS, KINDS
};
enum { MAX_FIELD = 16, MAX_DEPTH = 48 }; /* protobuf's own limit is 100 messages inside each other */

/* By kind of message: what each field is. */
extern const uint8_t FIELDS[KINDS][MAX_FIELD + 1];

int known_field(Bytes *in, int kind, Field *field);
int text_pair(Bytes pair, Bytes *key);
int is_known(Bytes in, int kind, int depth);
int read_once(Bytes in, int kind, int depth, Field *found, uint32_t *seen);

#endif
