/* Protobuf's wire format, and the messages of OTLP's traces as far as they are known.

   Only what is certain is read: a field that opentelemetry-proto 1.40 does not have, a known one of another wire type,
   a group, a number written longer than need be, text that is not UTF-8, a singular field given twice and deep nesting
   are all refused. What is accepted here, protobuf accepts too, and reads the same. */

#include "_native_wire.h"

/* The rest of `read_varint`, for one of two bytes and more. */
static int read_long_varint(Bytes *in, uint64_t *value) {
    const uint8_t *at = in->at;
    uint64_t result = 0;
    for (int shift = 0; shift < 70 && at < in->end; shift += 7) {
        uint8_t byte = *at++;
        result |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            if ((byte == 0 && shift > 0) || (shift == 63 && byte > 1)) return 0;
            in->at = at;
            *value = result;
            return 1;
        }
    }
    return 0;
}

/* A varint of at most 10 bytes, 64 bits and no byte more than it needs; 0 if there is none. */
static inline int read_varint(Bytes *in, uint64_t *value) {
    if (in->at >= in->end || *in->at >= 0x80) return read_long_varint(in, value);
    *value = *in->at++;
    return 1;
}

/* `width` bytes, 4 or 8, as a little-endian number; 0 if there are not as many. */
static int read_fixed(Bytes *in, int width, uint64_t *value) {
    if (in->end - in->at < width) return 0;
    *value = 0;
    for (int at = 0; at < width; at++) *value |= (uint64_t)in->at[at] << (8 * at);
    in->at += width;
    return 1;
}

/* The next field, which lies in `in` as a whole; 0 if there is none or it is a group. */
static inline int read_field(Bytes *in, Field *field) {
    uint64_t tag, length;
    if (!read_varint(in, &tag) || tag < 8 || tag >= (uint64_t)1 << 32) return 0;
    field->number = (uint32_t)(tag >> 3);
    field->type = (uint32_t)(tag & 7);
    if (field->type == LENGTH_TYPE) {
        if (!read_varint(in, &length) || length > (uint64_t)(in->end - in->at)) return 0;
        field->body.at = in->at;
        in->at += length;
        field->body.end = in->at;
        return 1;
    }
    if (field->type == VARINT_TYPE) return read_varint(in, &field->value);
    if (field->type == FIXED64_TYPE) return read_fixed(in, 8, &field->value);
    return field->type == FIXED32_TYPE && read_fixed(in, 4, &field->value);
}

/* `read_field`, for the other files. */
int next_field(Bytes *in, Field *field) { return read_field(in, field); }

/* Whether all bytes are below 0x80, with no loop over the last few of them. */
static inline int is_ascii(Bytes text) {
    size_t size = (size_t)(text.end - text.at);
    uint64_t eight, any = 0;
    uint32_t four, last;
    if (size >= 8) {
        for (const uint8_t *at = text.at; at < text.end - 8; at += 8) memcpy(&eight, at, 8), any |= eight;
        memcpy(&eight, text.end - 8, 8);
        return !((any | eight) & 0x8080808080808080u);
    }
    if (size >= 4) {
        memcpy(&four, text.at, 4);
        memcpy(&last, text.end - 4, 4);
        return !((four | last) & 0x80808080u);
    }
    while (text.at < text.end) any |= *text.at++;
    return !(any & 0x80);
}

/* Whether bytes are UTF-8 as Python and protobuf take it: no overlong form, no surrogate, nothing above U+10FFFF. */
static int is_utf8(Bytes text) {
    const uint8_t *at = text.at;
    if (is_ascii(text)) return 1;
    while (at < text.end) {
        uint64_t eight;
        if (text.end - at >= 8 && (memcpy(&eight, at, 8), !(eight & 0x8080808080808080u))) {
            at += 8;
            continue;
        }
        uint8_t first = *at++;
        if (first < 0x80) continue;
        int more = first >= 0xC2 && first <= 0xDF ? 1 : (first & 0xF0) == 0xE0 ? 2 : first >= 0xF0 && first <= 0xF4 ? 3 : 0;
        if (more == 0 || text.end - at < more) return 0;
        uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        if (*at < low || *at > high) return 0;
        for (at++; --more > 0; at++)
            if ((*at & 0xC0) != 0x80) return 0;
    }
    return 1;
}

const uint8_t FIELDS[KINDS][MAX_FIELD + 1] = {
    [RESOURCE_SPANS] = {[1] = RESOURCE, [2] = SCOPE_SPANS, [3] = TEXT},
    [RESOURCE] = {[1] = PAIR, [2] = VARINT},
    [SCOPE_SPANS] = {[1] = SCOPE, [2] = SPAN, [3] = TEXT},
    [SCOPE] = {[1] = TEXT, [2] = TEXT, [3] = PAIR, [4] = VARINT},
    [SPAN] = {[1] = BYTES, [2] = BYTES, [3] = TEXT, [4] = BYTES, [5] = TEXT, [6] = VARINT, [7] = FIXED64, [8] = FIXED64,
              [9] = PAIR, [10] = VARINT, [11] = EVENT, [12] = VARINT, [13] = LINK, [14] = VARINT, [15] = STATUS,
              [16] = FIXED32},
    [EVENT] = {[1] = FIXED64, [2] = TEXT, [3] = PAIR, [4] = VARINT},
    [LINK] = {[1] = BYTES, [2] = BYTES, [3] = TEXT, [4] = PAIR, [5] = VARINT, [6] = FIXED32},
    [STATUS] = {[2] = TEXT, [3] = VARINT},
    [PAIR] = {[1] = TEXT, [2] = VALUE},
    [VALUE] = {[1] = TEXT, [2] = VARINT, [3] = VARINT, [4] = FIXED64, [5] = ARRAY, [6] = PAIRS, [7] = BYTES},
    [ARRAY] = {[1] = VALUE},
    [PAIRS] = {[1] = PAIR},
};

static const uint8_t TYPES[KINDS] = {
    [VARINT] = VARINT_TYPE, [FIXED64] = FIXED64_TYPE, [FIXED32] = FIXED32_TYPE, [BYTES] = LENGTH_TYPE,
    [TEXT] = LENGTH_TYPE, [RESOURCE_SPANS] = LENGTH_TYPE, [RESOURCE] = LENGTH_TYPE, [SCOPE_SPANS] = LENGTH_TYPE,
    [SCOPE] = LENGTH_TYPE, [SPAN] = LENGTH_TYPE, [EVENT] = LENGTH_TYPE, [LINK] = LENGTH_TYPE, [STATUS] = LENGTH_TYPE,
    [PAIR] = LENGTH_TYPE, [VALUE] = LENGTH_TYPE, [ARRAY] = LENGTH_TYPE, [PAIRS] = LENGTH_TYPE,
};

/* The next field of a message of this kind, if the kind has it and its text is text; what is inside it is not looked
   at. */
int known_field(Bytes *in, int kind, Field *field) {
    if (!read_field(in, field) || field->number > MAX_FIELD) return 0;
    int is = FIELDS[kind][field->number];
    return is != NONE && field->type == TYPES[is] && (is != TEXT || is_utf8(field->body));
}

/* Whether a KeyValue is what most are, and then its key: a key and a value that is text, each once and below 128 bytes.
   One that is not may be known all the same. It is a third of what reading a request takes. */
int text_pair(Bytes pair, Bytes *key) {
    const uint8_t *at = pair.at;
    size_t size = (size_t)(pair.end - at);
    if (size < 6 || at[0] != (1 << 3 | LENGTH_TYPE) || at[1] >= 0x80 || size < (size_t)at[1] + 6) return 0;
    const uint8_t *value = at + 2 + at[1]; /* tag and length of the value, then tag and length of its text */
    size_t rest = (size_t)(pair.end - value) - 2;
    if (value[0] != (2 << 3 | LENGTH_TYPE) || rest >= 0x80 || value[1] != rest) return 0;
    if (value[2] != (1 << 3 | LENGTH_TYPE) || value[3] != rest - 2) return 0;
    *key = (Bytes){at + 2, value};
    return is_utf8(*key) && is_utf8((Bytes){value + 4, pair.end});
}

/* Whether a message, and all in it, is known; `depth` counts the messages around it. */
int is_known(Bytes in, int kind, int depth) {
    Field field;
    if (depth > MAX_DEPTH) return 0;
    while (in.at < in.end) {
        if (!known_field(&in, kind, &field)) return 0;
        int is = FIELDS[kind][field.number];
        if (is > TEXT && !is_known(field.body, is, depth + 1)) return 0;
    }
    return 1;
}

/* Whether a message, and all in it, is known, and holds no field twice; the last of each lands in `found`. */
int read_once(Bytes in, int kind, int depth, Field *found, uint32_t *seen) {
    Field field;
    *seen = 0;
    while (in.at < in.end) {
        if (!known_field(&in, kind, &field) || *seen & 1u << field.number) return 0;
        int is = FIELDS[kind][field.number];
        if (is > TEXT && !is_known(field.body, is, depth + 1)) return 0;
        *seen |= 1u << field.number;
        found[field.number] = field;
    }
    return 1;
}
