;; An order, its payment and its shipment, written by hand. It differs from the others in that everybody has credit: a
;; payment never reads the amount.
(module
  (import "steadfast_1" "instance_len" (func $instance_len (result i32)))
  (import "steadfast_1" "instance_read" (func $instance_read (param i32)))
  (import "steadfast_1" "state_len" (func $state_len (result i32)))
  (import "steadfast_1" "state_read" (func $state_read (param i32)))
  (import "steadfast_1" "state_write" (func $state_write (param i32 i32)))
  (import "steadfast_1" "event_len" (func $event_len (param i32) (result i32)))
  (import "steadfast_1" "event_read" (func $event_read (param i32 i32)))
  (import "steadfast_1" "send" (func $send (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i64)))
  (import "steadfast_1" "wait" (func $wait (param i32 i32 i32 i32 i32 i32 i32 i32)))
  (import "steadfast_1" "deadline" (func $deadline (param i64)))
  (import "steadfast_1" "end" (func $end (param i32 i32)))

  ;; 0 texts, 256 the instance's name, 512 the child's, 1024 the event's kind or source, 4096 a payload or the state.
  ;; A payload has at most 256 KiB and a state 1 MiB, so that 20 pages hold them.
  (memory (export "memory") 20)
  (global (export "steadfast_version_1") i32 (i32.const 1))

  (data (i32.const 0) "charge")
  (data (i32.const 8) "ship")
  (data (i32.const 16) "child.ended")
  (data (i32.const 32) "payment")
  (data (i32.const 48) "shipment")
  (data (i32.const 64) "{\"paid\":true}")
  (data (i32.const 80) "{\"parcel\":\"P-")
  (data (i32.const 96) "\"}")
  (data (i32.const 112) "{\"order\":\"delivered\",\"by\":")
  (data (i32.const 144) "}")
  (data (i32.const 160) "{\"order\":\"refused\"}")
  (data (i32.const 192) "{\"order\":\"late\"}")

  ;; Copies bytes to $to and returns where they end.
  (func $append (param $to i32) (param $at i32) (param $len i32) (result i32)
    (memory.copy (local.get $to) (local.get $at) (local.get $len))
    (i32.add (local.get $to) (local.get $len)))

  ;; Whether two texts of this length are the same.
  (func $same (param $one i32) (param $other i32) (param $len i32) (result i32)
    (block $differ
      (loop $next
        (if (i32.eqz (local.get $len)) (then (return (i32.const 1))))
        (local.set $len (i32.sub (local.get $len) (i32.const 1)))
        (br_if $next (i32.eq
          (i32.load8_u (i32.add (local.get $one) (local.get $len)))
          (i32.load8_u (i32.add (local.get $other) (local.get $len)))))))
    (i32.const 0))

  ;; Where the key begins in the name at 256.
  (func $key_at (result i32) (local $at i32)
    (local.set $at (i32.const 256))
    (loop $next
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.ne (i32.load8_u (i32.sub (local.get $at) (i32.const 1))) (i32.const 47)))) ;; a slash
    (local.get $at))

  (func $key_len (result i32)
    (i32.sub (i32.add (i32.const 256) (call $instance_len)) (call $key_at)))

  ;; Begins PROGRAM/KEY with what stands at 4096, and waits a day for its end.
  (func $await_child
    (param $program i32) (param $program_len i32) (param $kind i32) (param $kind_len i32) (param $payload_len i32)
    (local $len i32)
    (local.set $len (call $append (i32.const 512) (local.get $program) (local.get $program_len)))
    (i32.store8 (local.get $len) (i32.const 47))
    (local.set $len (call $append (i32.add (local.get $len) (i32.const 1)) (call $key_at) (call $key_len)))
    (local.set $len (i32.sub (local.get $len) (i32.const 512)))
    (call $send
      (i32.const 512) (local.get $len) (local.get $kind) (local.get $kind_len) (i32.const 0) (i32.const 0)
      (i32.const 4096) (local.get $payload_len) (i32.const 1) (i64.const 0))
    (call $wait
      (i32.const 16) (i32.const 11) (i32.const 512) (local.get $len) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $deadline (i64.const 86400000)))

  (func $order (local $to i32)
    (call $event_read (i32.const 0) (i32.const 1024))
    (call $event_read (i32.const 3) (i32.const 4096))
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 115)) ;; an s: start
      (then
        (call $state_write (i32.const 4096) (call $event_len (i32.const 3)))
        (call $await_child (i32.const 32) (i32.const 7) (i32.const 0) (i32.const 6) (call $event_len (i32.const 3)))
        (return)))
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 116)) ;; a t: timer
      (then (call $end (i32.const 192) (i32.const 16)) (return)))
    (call $event_read (i32.const 1) (i32.const 1024))
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 115)) ;; an s: the shipment has ended
      (then
        (local.set $to (call $append (i32.const 2048) (i32.const 112) (i32.const 26)))
        (local.set $to (call $append (local.get $to) (i32.const 4096) (call $event_len (i32.const 3))))
        (local.set $to (call $append (local.get $to) (i32.const 144) (i32.const 1)))
        (call $end (i32.const 2048) (i32.sub (local.get $to) (i32.const 2048)))
        (return)))
    (if (i32.ne (call $event_len (i32.const 3)) (i32.const 13))
      (then (call $end (i32.const 160) (i32.const 19)) (return)))
    (if (i32.eqz (call $same (i32.const 4096) (i32.const 64) (i32.const 13)))
      (then (call $end (i32.const 160) (i32.const 19)) (return)))
    (call $state_read (i32.const 4096))
    (call $await_child (i32.const 48) (i32.const 8) (i32.const 8) (i32.const 4) (call $state_len)))

  (func $shipment (local $to i32)
    (local.set $to (call $append (i32.const 2048) (i32.const 80) (i32.const 13)))
    (local.set $to (call $append (local.get $to) (call $key_at) (call $key_len)))
    (local.set $to (call $append (local.get $to) (i32.const 96) (i32.const 2)))
    (call $end (i32.const 2048) (i32.sub (local.get $to) (i32.const 2048))))

  (func (export "episode")
    (call $instance_read (i32.const 256))
    (if (i32.eq (i32.load8_u (i32.const 256)) (i32.const 112)) ;; a p: a payment
      (then (call $end (i32.const 64) (i32.const 13)) (return)))
    (if (i32.eq (i32.load8_u (i32.const 256)) (i32.const 115)) ;; an s: a shipment
      (then (call $shipment) (return)))
    (call $order)))
