package metadata

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// A sum stands for all that a store holds. It is the sum, modulo 2^128, of a hash of every entry of every bucket and of every
// sequence, so a transaction computes that of what it leaves from what it changes.
//
// The hash is SHA-256, cut to 128 bits: pages that are older than they should be differ in entries whose hashes have nothing to
// do with each other, so they leave the sum as it was once in 2^128. A hash in whose values small differences of an entry
// show as small ones, as of the FNV family, would let a stale entry make up for another one. Nobody is expected to forge sums:
// who can write to the file can write another stamp too.
type sum struct{ high, low uint64 }

func (s sum) plus(o sum) sum {
	low, carry := bits.Add64(s.low, o.low, 0)
	high, _ := bits.Add64(s.high, o.high, carry)
	return sum{high, low}
}

func (s sum) minus(o sum) sum {
	low, borrow := bits.Sub64(s.low, o.low, 0)
	high, _ := bits.Sub64(s.high, o.high, borrow)
	return sum{high, low}
}

// The kinds of what is summed, which keep one from standing for the other.
const (
	summedEntry    = 1
	summedSequence = 2
)

// A summer keeps a sum. Its buffer spares an allocation with each hash.
type summer struct {
	sum sum
	buf []byte
}

func (s *summer) add(bucket, key, value []byte) { s.sum = s.sum.plus(s.entry(bucket, key, value)) }

func (s *summer) remove(bucket, key, value []byte) { s.sum = s.sum.minus(s.entry(bucket, key, value)) }

// resequence takes the place of a bucket's sequence by another. One of 0, which most buckets have, counts for nothing.
func (s *summer) resequence(bucket []byte, was, is uint64) {
	if was != 0 {
		s.sum = s.sum.minus(s.hash(summedSequence, bucket, nil, key8(was)))
	}
	if is != 0 {
		s.sum = s.sum.plus(s.hash(summedSequence, bucket, nil, key8(is)))
	}
}

func (s *summer) entry(bucket, key, value []byte) sum { return s.hash(summedEntry, bucket, key, value) }

// hash gives bucket and key their lengths, so that no two entries are the same bytes.
func (s *summer) hash(kind byte, bucket, key, value []byte) sum {
	b := append(s.buf[:0], kind)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(bucket))), bucket...)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(key))), key...)
	b = append(b, value...)
	s.buf = b
	h := sha256.Sum256(b)
	return sum{binary.BigEndian.Uint64(h[:]), binary.BigEndian.Uint64(h[8:])}
}
