package metadata

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"
)

// bbolt notices when a page is not where it should be, and not when a bit of a value is another one. So the values that
// nothing else could be compared with, records and trash, end with a checksum over the id and themselves, and those of the
// bucket meta have one together. What the other buckets hold follows from the records.

const checksumSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(id ID, value []byte) uint32 {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], uint64(id))
	return crc32.Update(crc32.Checksum(key[:], castagnoli), castagnoli, value)
}

// seal appends the checksum of the value that id leads to.
func seal(id ID, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, checksum(id, value))
}

// unseal returns a value without its checksum, which must be right.
func unseal(id ID, sealed []byte) ([]byte, error) {
	n := len(sealed) - checksumSize
	if n < 0 || binary.BigEndian.Uint32(sealed[n:]) != checksum(id, sealed[:n]) {
		return nil, fmt.Errorf("%w: its checksum is wrong", errRecord)
	}
	return sealed[:n], nil
}

// metaSum returns the checksum of what the bucket meta holds.
func metaSum(meta *bolt.Bucket) []byte {
	var all []byte
	for _, key := range [][]byte{keyVersion, keyUUID, keyStarts, keyUnanswered(Directory), keyUnanswered(Volume)} {
		all = append(all, meta.Get(key)...)
	}
	return binary.BigEndian.AppendUint32(nil, checksum(0, all))
}
