"""Header fields of HTTP/2 as they come: decoded by `hpack` (RFC 7541), bounded, in the words of our own errors."""

from __future__ import annotations

import logging

from hpack import Decoder, HPACKError, OversizedHeaderListError

from joulegram_pipeline.http2_frames import Code, ConnectionFault

MAX_BLOCK_BYTES = 64 * 1024
"""Of header fields as they come. What has more, or more once decoded, ends the connection: the table is lost."""

# It would log every field at DEBUG, bearer tokens among them.
logging.getLogger("hpack").setLevel(logging.WARNING)

Pairs = tuple[tuple[bytes, bytes], ...]


def field_decoder() -> Decoder:
    """For the header blocks of one peer, in the order they come."""
    return Decoder(max_header_list_size=MAX_BLOCK_BYTES)


def fields_of(decoder: Decoder, block: bytes) -> Pairs:
    """Name and value of each field of a block.

    Raises:
        ConnectionFault: it is not HPACK, or too large to be decoded.
    """
    try:
        return tuple((bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True))
    except OversizedHeaderListError as error:
        raise ConnectionFault(Code.ENHANCE_YOUR_CALM, str(error)) from None
    except HPACKError as error:
        # Not its text, which may name an address of our memory.
        raise ConnectionFault(
            Code.COMPRESSION_ERROR, f"got header fields that are no HPACK ({type(error).__name__})"
        ) from None
