/* The hand-off of KV blocks between a prefill instance (owner) and decode requests (readers), by the
 * board of comm/handoff_board.h, under a router that may abort any room or die, and readers that may
 * stop for longer than the lease, or die. docs/pd.md tells it in words.
 *
 * Checked, in every order in which things can happen:
 *   early reuse  a block is not written while a reader owns it
 *   late reader  what a reader believes is what was written for its room
 *   lost blocks  every block and every slot comes back
 *   deadlock     nobody waits for ever (spin's invalid end states)
 *
 * Each FAULT_... is a mistake that the check has to find (check_handoff.sh).
 */
#ifndef ROOMS
#define ROOMS 2 /* 3: some minutes */
#endif
#define BLOCKS 2
#define SLOTS 2
#define READERS 2
#define SEATS 1 /* of the decode ranks' batch: fewer than there are readers, so one waits */

mtype = { FREE, OFFERED, TAKEN, DONE };

typedef Word { /* changed in one step, as an atomic word is */
  mtype state = FREE;
  byte ticket
};
Word word[SLOTS];
byte rows[BLOCKS];     /* the room whose rows a block holds; 0 while it is being written */
byte offered_as[BLOCKS]; /* slot + 1 of its last offer: for the assertion alone */
bool no_life[SLOTS];    /* the reader shows no life: the lease may end */
bool router_gone;
bool aborted[ROOMS + 1]; /* what the decode instance has heard */
byte seats = SEATS;

chan first_token = [ROOMS] of { byte, byte, byte, byte };   /* room, block, slot, ticket */
chan decode = [ROOMS] of { byte, byte, byte, byte };
chan abort_prefill = [2 * ROOMS] of { byte };

#define IS(s, t, st) (word[s].state == st && word[s].ticket == t)

/* ---- prefill ---------------------------------------------------------------------------------- */

inline give_back(r) {
  used[block_of[r]] = false;
  slot_used[slot_of[r]] = false;
  out[r] = false;
  no_life[slot_of[r]] = false;
  block_of[r] = 0; slot_of[r] = 0; ticket_of[r] = 0;
  back++
}

inline write_and_offer(r) {
  if :: !used[0] -> b = 0 :: else -> b = 1 fi; /* the lowest: what came back is used again first */
  if :: !slot_used[0] -> s = 0 :: else -> s = 1 fi;
  assert(offered_as[b] == 0 || word[offered_as[b] - 1].state != TAKEN ||
         block_in[offered_as[b] - 1] != b);
  rows[b] = 0;
  rows[b] = r;
  atomic {
#ifdef FAULT_ONE_TICKET
    ticket = 1;
#else
    ticket++;
#endif
    used[b] = true; slot_used[s] = true; out[r] = true;
    block_of[r] = b; slot_of[r] = s; ticket_of[r] = ticket;
    block_in[s] = b; offered_as[b] = s + 1;
    no_life[s] = false;
    word[s].ticket = ticket;
    word[s].state = OFFERED;
    if :: router_gone :: else -> first_token!r,b,s,ticket fi;
    b = 0; s = 0 /* of what is not needed any more no states are kept apart */
  }
}

/* A look at the room's slot, when CAN_LOOK: a compare-and-swap. */
inline look(r) {
  word[slot_of[r]].state = FREE;
  give_back(r)
}
/* An offer may always be taken back: its router is gone, or its lease is over, however long that
 * took. */
#ifdef FAULT_NO_WITHDRAWAL
#define FROM_OFFERED(r) false
#else
#define FROM_OFFERED(r) IS(slot_of[r], ticket_of[r], OFFERED)
#endif
#ifdef FAULT_NO_LEASE
#define FROM_TAKEN(r) false
#else
#define FROM_TAKEN(r) (IS(slot_of[r], ticket_of[r], TAKEN) && no_life[slot_of[r]])
#endif
#define CAN_LOOK(r) (out[r] && (IS(slot_of[r], ticket_of[r], DONE) || FROM_OFFERED(r) || FROM_TAKEN(r)))

active proctype owner() {
  byte next = 1, ticket, back, b, s, r;
  bool used[BLOCKS], slot_used[SLOTS], out[ROOMS + 1];
  byte block_of[ROOMS + 1], slot_of[ROOMS + 1], ticket_of[ROOMS + 1], block_in[SLOTS];
  do
  :: next <= ROOMS && (!used[0] || !used[1]) && (!slot_used[0] || !slot_used[1]) ->
     write_and_offer(next);
     next++
  :: abort_prefill?r ->
     if
     :: atomic { out[r] && IS(slot_of[r], ticket_of[r], OFFERED) ->
                 word[slot_of[r]].state = FREE; give_back(r) }
#ifdef FAULT_ABORT_FREES_TAKEN
     :: atomic { out[r] && IS(slot_of[r], ticket_of[r], TAKEN) -> give_back(r) }
     :: atomic { !(out[r] && (IS(slot_of[r], ticket_of[r], OFFERED) ||
                              IS(slot_of[r], ticket_of[r], TAKEN))) }
#else
     :: atomic { !(out[r] && IS(slot_of[r], ticket_of[r], OFFERED)) } /* its reader lets go */
#endif
     fi;
     r = 0
  :: atomic { CAN_LOOK(1) -> look(1) }
  :: atomic { CAN_LOOK(2) -> look(2) }
#if ROOMS > 2
  :: atomic { CAN_LOOK(3) -> look(3) }
#endif
  :: next > ROOMS && back == ROOMS -> break
  od;
  assert(!used[0] && !used[1] && !slot_used[0] && !slot_used[1])
}

/* ---- router ----------------------------------------------------------------------------------- */

active proctype router() {
  byte r, b, s, t, handled;
  bool forwarded[ROOMS + 1];
  do
  :: handled < ROOMS && nempty(first_token) ->
     first_token?r,b,s,t;
     handled++;
     if
     :: atomic { decode!r,b,s,t; forwarded[r] = true }
     :: abort_prefill!r /* the client has left */
     fi;
     atomic { r = 0; b = 0; s = 0; t = 0 }
  :: atomic { forwarded[1] -> forwarded[1] = false; aborted[1] = true; abort_prefill!1 }
  :: atomic { forwarded[2] -> forwarded[2] = false; aborted[2] = true; abort_prefill!2 }
#if ROOMS > 2
  :: atomic { forwarded[3] -> forwarded[3] = false; aborted[3] = true; abort_prefill!3 }
#endif
  :: break /* killed, at any moment, or done */
  od;
  router_gone = true
}

/* ---- decode: each reader has one room at a time ------------------------------------------------- */

/* A step reads the block; then the board is asked whether what was read may be believed. */
inline step() {
  seen = rows[b];
  if
#ifdef FAULT_NO_CHECK
  :: true -> assert(seen == r)
#else
  :: atomic { IS(s, t, TAKEN) -> assert(seen == r) }
  :: !IS(s, t, TAKEN) -> lost = true
#endif
  fi
}

active [READERS] proctype reader() {
  byte r, b, s, t, seen, steps;
  bool mine, lost;
end_idle:
  do
  :: atomic { nempty(decode) -> decode?r,b,s,t }
#ifdef FAULT_TAKE_WITHOUT_LOOKING
     atomic { word[s].ticket = t; word[s].state = TAKEN; mine = true };
#else
     atomic {
       if
       :: IS(s, t, OFFERED) -> word[s].state = TAKEN; mine = true
       :: else -> mine = false
       fi
     };
#endif
     if
     :: mine ->
        lost = false;
        steps = 0;
        if
        :: atomic { seats > 0 -> seats-- };
           do
           :: steps < 2 && !lost && !aborted[r] && !router_gone -> step(); steps++
           :: steps == 2 || lost || aborted[r] || router_gone -> break
           :: atomic { IS(s, t, TAKEN) -> no_life[s] = true } /* stopped; it may go on later */
           :: atomic { IS(s, t, TAKEN) -> no_life[s] = true; seats++; goto dead }
           od;
           seats++
        :: aborted[r] || router_gone /* before it had a seat */
        fi;
#ifndef FAULT_NEVER_DONE
        atomic { if :: IS(s, t, TAKEN) -> word[s].state = DONE :: else fi }
#endif
     :: else
     fi;
     atomic { r = 0; b = 0; s = 0; t = 0; seen = 0; steps = 0; mine = false; lost = false }
  :: router_gone && empty(decode) -> break
  od;
dead:
  skip
}
