// The ring of slots in shared memory through which everything comes that a block reads: rows of state, of error beside
// centred, and of windows. A slot has 4 D bytes. One thread fills slots in order and as far ahead as there are free ones,
// so the rows of the next latents are on their way while this one is computed; the threads that compute empty them in order.
#pragma once

#include "rows.h"

namespace saefast::update {

// What a slot is about, beside its bytes.
struct Note {
    std::int32_t latent;            // of its first slot; -1: no more
    std::int32_t entries, windows;  // of the latent
    float values[3];                // with W_enc the bias and its moments; an activation; a sum; the scales of int8 moments
};

struct Shared {
    unsigned char* slots;  // [stages, 4 D]
    Note* notes;           // [stages]
    Barrier *full, *empty;  // [stages]
    float *room, *numbers;

    static constexpr int FIXED = (2 * WARP * TOGETHER + 16) * 4, OF_STAGE = sizeof(Note) + 2 * sizeof(Barrier);

    SAEFAST_DEVICE Shared(unsigned char* memory, int stages, int D) {
        slots = memory;
        room = reinterpret_cast<float*>(slots + static_cast<std::int64_t>(stages) * 4 * D);
        numbers = room + 2 * WARP * TOGETHER;
        full = reinterpret_cast<Barrier*>(numbers + 16);
        empty = full + stages;
        notes = reinterpret_cast<Note*>(empty + stages);
    }
};

// A slot, and the parity of its phase: how often the ring was passed.
struct Cursor {
    int slot = 0;
    std::uint32_t parity = 0;

    SAEFAST_DEVICE void next(int stages) {
        if (++slot == stages) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// A piece of memory that comes into a slot.
struct Piece {
    const void* from;
    int bytes;
    Keep keep;
};

struct Filling {
    const Shared& shared;
    int stages, slot_bytes;
    Cursor cursor;

    SAEFAST_DEVICE void send(const Note& note, const Piece& first, const Piece& second) {
        Barrier* full = shared.full + cursor.slot;
        unsigned char* slot = shared.slots + cursor.slot * slot_bytes;
        wait(shared.empty + cursor.slot, cursor.parity ^ 1);
        shared.notes[cursor.slot] = note;
        arrive_expecting(full, first.bytes + second.bytes);
        bulk_load(slot, first.from, first.bytes, full, first.keep);
        if (second.bytes > 0) bulk_load(slot + first.bytes, second.from, second.bytes, full, second.keep);
        cursor.next(stages);
    }

    SAEFAST_DEVICE void end() {
        wait(shared.empty + cursor.slot, cursor.parity ^ 1);
        shared.notes[cursor.slot].latent = -1;
        arrive(shared.full + cursor.slot);
    }
};

struct Emptying {
    const Shared& shared;
    int stages, slot_bytes;
    Cursor cursor;

    SAEFAST_DEVICE const unsigned char* slot(const Cursor& at) const {
        wait(shared.full + at.slot, at.parity);
        return shared.slots + at.slot * slot_bytes;
    }
    SAEFAST_DEVICE const unsigned char* slot() const { return slot(cursor); }
    SAEFAST_DEVICE const unsigned char* here() const { return shared.slots + cursor.slot * slot_bytes; }  // after `slot`
    SAEFAST_DEVICE const Note& note(const Cursor& at) const { return shared.notes[at.slot]; }
    SAEFAST_DEVICE const Note& note() const { return note(cursor); }

    // This thread has read the slot.
    SAEFAST_DEVICE void release(const Place& place) {
        meet_warp();
        if (place.thread % WARP == 0) arrive(shared.empty + cursor.slot);
        cursor.next(stages);
    }
};

}  // namespace saefast::update
