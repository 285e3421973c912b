;; An account of a ring: what is passed on goes round the accounts, one hop less at each, until it has gone far enough.
;; A payload is the amount and the hops, of 8 bytes each; the first one is the name of the next account. The state is the
;; balance, how many deposits there were, and that name.
(module
  (import "steadfast_1" "state_len" (func $state_len (result i32)))
  (import "steadfast_1" "state_read" (func $state_read (param i32)))
  (import "steadfast_1" "state_write" (func $state_write (param i32 i32)))
  (import "steadfast_1" "event_len" (func $event_len (param i32) (result i32)))
  (import "steadfast_1" "event_read" (func $event_read (param i32 i32)))
  (import "steadfast_1" "send" (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i64)))
  (import "steadfast_1" "wait" (func $wait (param i32 i32 i32 i32 i32 i32 i32 i32)))

  ;; 0 a text, 1024 the event's kind, 2048 its payload, 4096 the state.
  (memory (export "memory") 8)
  (global (export "steadfast_version_1") i32 (i32.const 1))
  (data (i32.const 0) "deposit")

  (func $begin
    (call $event_read (i32.const 3) (i32.const 4112))
    (i64.store (i32.const 4096) (i64.const 1000))
    (call $state_write (i32.const 4096) (i32.add (i32.const 16) (call $event_len (i32.const 3)))))

  (func $move
    (call $state_read (i32.const 4096))
    (call $event_read (i32.const 3) (i32.const 2048))
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 100)) ;; a d: deposit
      (then
        (i64.store (i32.const 4096) (i64.add (i64.load (i32.const 4096)) (i64.load (i32.const 2048))))
        (i64.store (i32.const 4104) (i64.add (i64.load (i32.const 4104)) (i64.const 1)))))
    (if (i64.ne (i64.load (i32.const 2056)) (i64.const 0))
      (then
        (i64.store (i32.const 4096) (i64.sub (i64.load (i32.const 4096)) (i64.load (i32.const 2048))))
        (i64.store (i32.const 2056) (i64.sub (i64.load (i32.const 2056)) (i64.const 1)))
        (call $send
          (i32.const 4112) (i32.sub (call $state_len) (i32.const 16)) (i32.const 0) (i32.const 7)
          (i32.const 0) (i32.const 0) (i32.const 2048) (i32.const 16) (i32.const 0) (i64.const 0))))
    (call $state_write (i32.const 4096) (call $state_len)))

  (func (export "episode")
    (call $event_read (i32.const 0) (i32.const 1024))
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 115)) ;; an s: start
      (then (call $begin))
      (else (call $move)))
    (call $wait
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))
